-- The sessions whose due time has come, by the server's clock, the oldest first.
--
-- KEYS  1 sorted set of due times
-- ARGV  1 how many at most
-- reply the sessions
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
return redis.call('ZRANGE', KEYS[1], '-inf', now_ms, 'BYSCORE', 'LIMIT', 0, ARGV[1])
