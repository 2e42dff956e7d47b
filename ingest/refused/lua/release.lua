#!lua
-- Append a released callback to its partition's stream, unless it was before: however often, and by however many, a
-- release is begun.
--
-- KEYS  1 callbacks   2 released
-- ARGV  1 the refused request's key   2 the callback   3 the stream's field for it   4 how long the key is remembered, ms
-- reply 1 appended, 0 it was appended before
if redis.call('SISMEMBER', KEYS[2], ARGV[1]) == 1 then
    return 0
end
redis.call('XADD', KEYS[1], '*', ARGV[3], ARGV[2])
redis.call('SADD', KEYS[2], ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return 1
