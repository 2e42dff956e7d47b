#!lua flags=allow-oom
-- Add 1 to the number in a field of a hash.
--
-- KEYS  1 hash
-- ARGV  1 field
-- reply the number, as it is then
--
-- Out of memory is no reason to refuse an operator (allow-oom).
return redis.call('HINCRBY', KEYS[1], ARGV[1], 1)
