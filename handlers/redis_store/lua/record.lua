-- Keep one observation of a session in its record, and emit what follows from it, all or nothing.
--
-- KEYS  1 record of the session   2 stream of the partition   3 sorted set of due times
-- ARGV  1 fencing token of the caller, 0 for none   2 version of the record that the caller knows, -1 for any
--       3 field of the observation, empty for none   4 its value   5 observations kept at most   6 life, milliseconds
--       7 due in so many milliseconds, -1 for never, empty: as it is   8 the session   9 1: only if it is due now
--       then for each emission three: field, its value, value of the stream entry (field c; empty: none)
-- reply {status, version, server's time in ms, fields and values of the record or nothing}
--       status: "stored"; "known" if there was nothing to change; "full" if the observation was counted and not kept;
--       "fenced" if a greater token has written, "early" if it is not due: nothing was done; "changed" if the version is
--       another, with the record: nothing was done either
--
-- The record's own fields: token (the greatest that has written), version, count (observations), beyond (those that
-- were not kept). Every write raises the version. Reads come first, so that a wrong type or a full server stops the
-- script before it has written anything.
local own = redis.call('HMGET', KEYS[1], 'token', 'version', 'count', 'beyond')
local token, version = tonumber(own[1] or 0), tonumber(own[2] or 0)
local count, beyond = tonumber(own[3] or 0), tonumber(own[4] or 0)
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local mine = tonumber(ARGV[1])
if mine > 0 and mine < token then
    return {'fenced', version, now_ms, {}}
end
if ARGV[2] ~= '-1' and tonumber(ARGV[2]) ~= version then
    return {'changed', version, now_ms, redis.call('HGETALL', KEYS[1])}
end
local due = redis.call('ZSCORE', KEYS[3], ARGV[8])
if ARGV[9] == '1' and not (due and tonumber(due) <= now_ms) then
    return {'early', version, now_ms, {}}
end
if #ARGV > 9 then
    redis.call('XLEN', KEYS[2])
end
local status, fields = 'known', {}
if ARGV[3] ~= '' and not redis.call('HGET', KEYS[1], ARGV[3]) then
    if count < tonumber(ARGV[5]) then
        status = 'stored'
        fields = {ARGV[3], ARGV[4], 'count', count + 1}
    else
        status = 'full'
        fields = {'beyond', beyond + 1}
    end
end
for at = 10, #ARGV, 3 do
    status = status == 'known' and 'stored' or status
    fields[#fields + 1] = ARGV[at]
    fields[#fields + 1] = ARGV[at + 1]
end
if mine > token then
    fields[#fields + 1] = 'token'
    fields[#fields + 1] = ARGV[1]
end
if status ~= 'known' then
    version = version + 1
    fields[#fields + 1] = 'version'
    fields[#fields + 1] = version
end
if #fields > 0 then
    redis.call('HSET', KEYS[1], unpack(fields))
end
for at = 10, #ARGV, 3 do
    if ARGV[at + 2] ~= '' then
        redis.call('XADD', KEYS[2], '*', 'c', ARGV[at + 2])
    end
end
redis.call('PEXPIRE', KEYS[1], ARGV[6])
if ARGV[7] == '-1' then
    if due then
        redis.call('ZREM', KEYS[3], ARGV[8])
    end
elseif ARGV[7] ~= '' then
    redis.call('ZADD', KEYS[3], now_ms + tonumber(ARGV[7]), ARGV[8])
end
return {status, version, now_ms, {}}
