#!lua flags=allow-oom
-- Set a field of a hash if it has the value expected, and return the value that it has afterwards.
--
-- KEYS  1 hash
-- ARGV  1 field   2 the value expected, empty if the field must not exist   3 the value to set
-- reply the field's value; nil if it does not exist
--
-- Out of memory is no reason to refuse an operator: discarding dead letters makes room (allow-oom).
local present = redis.call('HGET', KEYS[1], ARGV[1])
if (present or '') ~= ARGV[2] then
    return present
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return ARGV[3]
