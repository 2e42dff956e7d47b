#!lua flags=allow-oom
-- Take a free lease, or find it is taken; make sure the stream and the group exist.
--
-- KEYS  1 lease   2 fence   3 stream   4 marks
-- ARGV  1 worker id   2 lease life, ms   3 group   4 the greatest token that the worker has had for it, or 0
-- reply 0 if somebody holds the lease, else
--       { fencing token, the group's cursor, entries read up to the cursor or -1, pending entries,
--         1 if the last tenure ended well, the stream's last ID, 1 if the cursor was reset,
--         the marks as HGETALL has them }
--
-- A tenure ended well if the lease was given back (release.lua). If its owner takes it again itself, it lives; but then
-- the reply to its last try may have been lost, so what was found then (`well`) is what it is told now.
--
-- The token is the last one plus one, and never less than the server's clock, nor than what the worker has had: so it
-- grows even where a failover has lost the last increments, and the new server's clock is behind.
--
-- A cursor beyond the stream's last ID would skip all that comes until the IDs have caught up. It can only stand there
-- where the stream has lost its end and the group has not (an older release, or somebody's hand): nobody knows how far
-- the group had come, so it begins again at the first entry there is.

-- IDs are pairs of 64-bit numbers, more than a Lua number holds: compared as text, the longer number is the greater.
local function less(a, b)
    local a_ms, a_seq = string.match(a, '^(%d+)-(%d+)$')
    local b_ms, b_seq = string.match(b, '^(%d+)-(%d+)$')
    if a_ms ~= b_ms then
        return #a_ms < #b_ms or (#a_ms == #b_ms and a_ms < b_ms)
    end
    return #a_seq < #b_seq or (#a_seq == #b_seq and a_seq < b_seq)
end

if redis.call('EXISTS', KEYS[1]) == 1 then
    return 0
end
local marks = redis.call('HGETALL', KEYS[4])
local last = redis.call('HMGET', KEYS[2], 'token', 'clean', 'owner', 'well')
local ended_well = not last[1] or last[1] == last[2] or (last[3] == ARGV[1] and last[4] == '1')
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local token = math.max((tonumber(last[1]) or 0) + 1, now_ms, (tonumber(ARGV[4]) or 0) + 1)
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
        local cursor, entries_read, reset = info['last-delivered-id'], info['entries-read'] or -1, 0
        if less(info['last-generated-id'], cursor) then
            cursor, entries_read, reset = '0-0', before, 1
            -- What is pending lies after the new cursor as well, and is not to be taken up twice.
            while info['pending'] > 0 do
                local page = redis.call('XAUTOCLAIM', KEYS[3], ARGV[3], 'maskline', 0, '0-0', 'COUNT', 1000, 'JUSTID')
                if #page[2] > 0 then
                    redis.call('XACK', KEYS[3], ARGV[3], unpack(page[2]))
                end
                info['pending'] = redis.call('XPENDING', KEYS[3], ARGV[3])[1]
            end
            redis.call('XGROUP', 'SETID', KEYS[3], ARGV[3], cursor, 'ENTRIESREAD', before)
        end
        return {
            token, cursor, entries_read, info['pending'], ended_well and 1 or 0, info['last-generated-id'], reset,
            marks,
        }
    end
end
return redis.error_reply('the consumer group was created and is not there')
