#!lua flags=allow-oom
-- Take runs out of a job's rate, which all workers share: as many as are wanted, or none yet.
--
-- KEYS  1 the job's rate
-- ARGV  1 microseconds that each run takes up   2 how many runs are wanted
-- reply 0 they may begin; else the microseconds after which to ask again
--
-- The key holds the time, in microseconds, at which the runs taken so far are paid off. Until then nothing is given; then
-- all that is wanted is given at once, since a session's runs are put into its queues together. So the rate holds over
-- a while, not in every moment. The key expires when it has no meaning any more.
-- Runs that are wanted at once at most.
local RUNS_MAX = 1000
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local paid_off = tonumber(redis.call('GET', KEYS[1])) or 0
local price = math.ceil(ARGV[1] * ARGV[2])
local debt = paid_off - now
-- A larger debt than any has been: the server's clock was set back.
if debt > 0 and debt <= math.max(ARGV[1] * RUNS_MAX, 1000000) then
    return math.ceil(debt)
end
redis.call('SET', KEYS[1], string.format('%.0f', now + price), 'PX', math.ceil(price / 1000) + 1000)
return 0
