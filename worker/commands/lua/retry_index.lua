#!lua flags=no-writes
-- Say how many events wait in the retry queues of a partition, by handler. It needs no lease, as it changes nothing.
--
-- KEYS  1 counts   2, 3, 4 prefixes of the handlers' due, parked and since sets; the handler's name follows
-- ARGV  none
-- reply { { handler, events that wait, those of them in parked queues, ms until the first queue is due or -1 for none,
--           how long the oldest queue has been there, ms, or -1, ms since the first queue was parked or -1,
--           queues, queues that are due now, parked queues } … }
--
-- The keys made of a prefix have its hash tag, so they are in its slot of a cluster.
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

local function lowest(key)
    return tonumber(redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')[2])
end
local function age_ms(key)
    local since_ms = lowest(key)
    return since_ms and math.max(now_ms - since_ms, 0) or -1
end

local waiting, parked, names = {}, {}, {}
local counts = redis.call('HGETALL', KEYS[1])
for i = 1, #counts, 2 do
    local what, name = string.match(counts[i], '^(%S+) (%S*)$')
    if what == 'waiting' then
        names[#names + 1], waiting[name] = name, tonumber(counts[i + 1]) or 0
    elseif what == 'parked' then
        parked[name] = tonumber(counts[i + 1]) or 0
    end
end
local reply = {}
for _, name in ipairs(names) do
    local due, parked_set, since = KEYS[2] .. name, KEYS[3] .. name, KEYS[4] .. name
    local due_ms = lowest(due)
    reply[#reply + 1] = {
        name, waiting[name], parked[name] or 0, due_ms and math.max(due_ms - now_ms, 0) or -1,
        age_ms(since), age_ms(parked_set),
        redis.call('ZCARD', since), redis.call('ZCOUNT', due, '-inf', string.format('%.0f', now_ms)),
        redis.call('ZCARD', parked_set),
    }
end
return reply
