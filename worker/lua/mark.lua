#!lua
-- Write marks of handlers that may bring their worker down, if the partition is still mine.
--
-- KEYS  1 lease   2 marks
-- ARGV  1 lease value (fencing token, worker id)   2 life of the marks, seconds   then field and value of each
-- reply 1 written, 0 fenced off: nothing was done
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    return 0
end
redis.call('HSET', KEYS[2], unpack(ARGV, 3))
redis.call('EXPIRE', KEYS[2], ARGV[2])
return 1
