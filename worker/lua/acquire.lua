#!lua flags=allow-oom
-- Take a free lease, or find it is taken; make sure the stream and the group exist.
--
-- KEYS  1 lease   2 fence   3 stream   4 marks
-- ARGV  1 worker id   2 lease life, ms   3 group
-- reply 0 if somebody holds the lease, else
--       { fencing token, the group's cursor, entries read up to the cursor or -1, pending entries,
--         1 if the last tenure ended well, the stream's last ID, the marks as HGETALL has them }
--
-- A tenure ended well if the lease was given back (release.lua). If its owner takes it again itself, it lives; but then
-- the reply to its last try may have been lost, so what was found then (`well`) is what it is told now.
--
-- The token is the last one plus one, and never less than the server's clock: so it grows even where a failover
-- has lost the last increments.
if redis.call('EXISTS', KEYS[1]) == 1 then
    return 0
end
local marks = redis.call('HGETALL', KEYS[4])
local last = redis.call('HMGET', KEYS[2], 'token', 'clean', 'owner', 'well')
local ended_well = not last[1] or last[1] == last[2] or (last[3] == ARGV[1] and last[4] == '1')
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local token = math.max((tonumber(last[1]) or 0) + 1, now_ms)
token = string.format('%.0f', token)
redis.call('HSET', KEYS[2], 'token', token, 'commit', '', 'owner', ARGV[1], 'well', ended_well and 1 or 0)
redis.call('SET', KEYS[1], token .. ' ' .. ARGV[1], 'PX', ARGV[2])

-- A new group starts at the first entry there is; what retention has taken before it counts as read.
local before = 0
local stream = redis.pcall('XINFO', 'STREAM', KEYS[3])
if not stream.err then
    local info = {}
    for i = 1, #stream, 2 do
        info[stream[i]] = stream[i + 1]
    end
    before = info['entries-added'] - info['length']
end
local created = redis.pcall('XGROUP', 'CREATE', KEYS[3], ARGV[3], '0', 'MKSTREAM', 'ENTRIESREAD', before)
if type(created) == 'table' and created.err and not string.find(created.err, 'BUSYGROUP', 1, true) then
    redis.call('DEL', KEYS[1])
    return redis.error_reply(created.err)
end

for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[3])) do
    local info = {}
    for i = 1, #group, 2 do
        info[group[i]] = group[i + 1]
    end
    if info['name'] == ARGV[3] then
        local state = redis.call('XINFO', 'STREAM', KEYS[3])
        for i = 1, #state, 2 do
            info[state[i]] = state[i + 1]
        end
        return {
            token, info['last-delivered-id'], info['entries-read'] or -1, info['pending'],
            ended_well and 1 or 0, info['last-generated-id'], marks,
        }
    end
end
return redis.error_reply('the consumer group was created and is not there')
