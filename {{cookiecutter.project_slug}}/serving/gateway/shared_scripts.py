"""What `SharedCounters` does in Redis, each in one step that nobody else's step comes between.

A slot is a lease: a member of a sorted set, scored by the millisecond it ends at, by Redis's clock.
All keys come slots first, then windows.
"""

from __future__ import annotations

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

#: ARGV: slots; a lease's milliseconds; limit and id of each slot; limit, amount and seconds of each
#: window. Returns whether all was taken, the number of the first slot there was none of (or 0), and
#: what each window holds.
CLAIM = f"""{_NOW}
local slots, lease = tonumber(ARGV[1]), tonumber(ARGV[2])
local full, over, totals = 0, false, {{}}
for i = 1, slots do
  redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', now)
  if full == 0 and redis.call('ZCARD', KEYS[i]) >= tonumber(ARGV[2 * i + 1]) then full = i end
end
for i = 1, #KEYS - slots do
  local at = 2 * slots + 3 * i
  totals[i] = tonumber(redis.call('GET', KEYS[slots + i]) or 0)
  over = over or totals[i] + ARGV[at + 1] > tonumber(ARGV[at])
end
if full > 0 or over then return {{0, full, unpack(totals)}} end
for i = 1, slots do
  redis.call('ZADD', KEYS[i], now + lease, ARGV[2 * i + 2])
  redis.call('PEXPIRE', KEYS[i], lease)
end
for i = 1, #KEYS - slots do
  local key, at = KEYS[slots + i], 2 * slots + 3 * i
  totals[i] = redis.call('INCRBY', key, ARGV[at + 1])
  if redis.call('TTL', key) < 0 then redis.call('EXPIRE', key, ARGV[at + 2]) end
end
return {{1, 0, unpack(totals)}}
"""

#: ARGV: slots; the id of each; the change of each window. A window that is over stays so.
SETTLE = """
local slots = tonumber(ARGV[1])
for i = 1, #KEYS do
  if i <= slots then
    redis.call('ZREM', KEYS[i], ARGV[i + 1])
  elseif redis.call('EXISTS', KEYS[i]) == 1 then
    redis.call('INCRBY', KEYS[i], ARGV[i + 1])
  end
end
"""

#: ARGV: a lease's milliseconds; XX for slots that are still there, CH for all; the id of each.
RENEW = f"""{_NOW}
for i = 1, #KEYS do
  redis.call('ZADD', KEYS[i], ARGV[2], now + ARGV[1], ARGV[i + 2])
  redis.call('PEXPIRE', KEYS[i], ARGV[1])
end
"""
