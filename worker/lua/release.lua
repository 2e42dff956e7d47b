-- Give a lease back that is still mine.
--
-- KEYS  1 lease
-- ARGV  1 lease value (fencing token, worker id)
-- reply 1 given back, 0 was no longer mine
if redis.call('GET', KEYS[1]) == ARGV[1] then
    return redis.call('DEL', KEYS[1])
end
return 0
