-- Every event, one row each. A partition holds the events of one UTC day, by when ingest received them; workers make the
-- partitions (partitions.py). That time is the same at every redelivery, so the key is unique over all partitions.

CREATE TABLE events (
    day date NOT NULL,
    received_at timestamptz NOT NULL,
    session_uuid text COLLATE "C" NOT NULL,
    idempotency_key text COLLATE "C" NOT NULL,
    event_name text NOT NULL,
    event_timestamp timestamptz,
    sequence_number bigint,
    run bigint NOT NULL,
    sequence_order text NOT NULL,
    missing bigint[],
    skipped bigint[],
    attempt bigint NOT NULL,
    replayed boolean NOT NULL,
    fencing_token bigint NOT NULL,
    entry_id text NOT NULL,
    from_number text,
    to_number text,
    first_party text,
    second_party text,
    virtual_number text,
    pin_authentication_status text,
    pin_retry_counter bigint,
    amount numeric,
    billed_duration bigint,
    duration bigint,
    plivo_hangup_cause text,
    plivo_hangup_cause_code bigint,
    recording_uuid text,
    recording_url text,
    recording_resource_url text,
    recording_duration bigint,
    recording_start_time timestamptz,
    recording_end_time timestamptz,
    recording_format text,
    extra jsonb,
    problems text[],
    substituted text[],
    stored_at timestamptz NOT NULL DEFAULT now(),
    -- The session first, so that the one index also finds a session's events.
    PRIMARY KEY (session_uuid, idempotency_key, day)
) PARTITION BY RANGE (day);

COMMENT ON TABLE events IS 'Events of Plivo''s Number Masking, as maskline handled them';
COMMENT ON COLUMN events.day IS 'UTC day of received_at: name it in a query, and only its partitions are read';
COMMENT ON COLUMN events.sequence_order IS 'in_order, after_gap, late or unsequenced';
COMMENT ON COLUMN events.missing IS 'numbers that were given up just before it; NULL: none';
COMMENT ON COLUMN events.skipped IS 'earlier numbers of the session that were never stored: they are dead letters';
COMMENT ON COLUMN events.extra IS 'parameters that are no column, or that could not be read, by Plivo''s names';
COMMENT ON COLUMN events.problems IS 'Plivo''s names of the attributes that could not be read; their texts are in extra';
COMMENT ON COLUMN events.substituted IS 'columns where U+2400 or U+FFFD stands for a character that text cannot hold';

-- What workers send: an array of these. A release that adds a column makes a type of its own, for workers of the one
-- before go on sending this one until all are replaced.
CREATE TYPE event_row AS (
    session_uuid text,
    idempotency_key text,
    event_name text,
    sequence_order text,
    entry_id text,
    from_number text,
    to_number text,
    first_party text,
    second_party text,
    virtual_number text,
    pin_authentication_status text,
    plivo_hangup_cause text,
    recording_uuid text,
    recording_url text,
    recording_resource_url text,
    recording_format text,
    extra jsonb,
    day date,
    received_at timestamptz,
    event_timestamp timestamptz,
    sequence_number bigint,
    run bigint,
    missing bigint[],
    skipped bigint[],
    attempt bigint,
    replayed boolean,
    fencing_token bigint,
    pin_retry_counter bigint,
    amount numeric,
    billed_duration bigint,
    duration bigint,
    plivo_hangup_cause_code bigint,
    recording_duration bigint,
    recording_start_time timestamptz,
    recording_end_time timestamptz,
    problems text[],
    substituted text[]
);
