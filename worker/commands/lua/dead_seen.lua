#!lua flags=allow-oom
-- Read how far a group's handlers of dead letters have come in a partition, and move on from there.
--
-- Also where the server is out of memory (allow-oom): a value of some sixty bytes takes the place of one like it.
--
-- KEYS  1 what is kept of it (`{ns:p}:dead-seen:<group>`)
-- ARGV  1 for how many ms the caller has known such handlers: at the first start of any, letters that were written
--         before that are no affair of theirs
--       2 the value as the caller knows it   3 the value to put in its place. Both empty: only read
-- reply the value now; the third argument if that was put there, by this call or by one whose reply was lost
--
-- The value: `<ID of the last letter done> <ID of the letter begun, or -> <how often that was begun> <fencing token of
-- whoever wrote this>`. Only who knows the present value moves it on: of two workers, one of which does not know yet
-- that it has lost the partition, one comes too late.
local seen = redis.call('GET', KEYS[1])
if not seen then
    local now = redis.call('TIME')
    local started_ms = math.max(now[1] * 1000 + math.floor(now[2] / 1000) - ARGV[1], 0)
    seen = string.format('%.0f-0 - 0 0', started_ms)
    redis.call('SET', KEYS[1], seen)
end
if ARGV[2] ~= seen or ARGV[3] == '' then
    return seen
end
redis.call('SET', KEYS[1], ARGV[3])
return ARGV[3]
