-- What analysts ask for. Days are UTC days: of the call's start, of the event's receipt.

CREATE VIEW answer_rate AS
SELECT (coalesce(started_at, ended_at, received_at) AT TIME ZONE 'UTC')::date AS day,
       count(*) AS calls,
       count(*) FILTER (WHERE answered) AS answered,
       round(count(*) FILTER (WHERE answered)::numeric / count(*), 4) AS answer_rate
FROM call_summaries
GROUP BY 1;
COMMENT ON VIEW answer_rate IS 'of the calls of a day, how many connected both parties: 0 to 1';

CREATE VIEW cost_per_day AS
SELECT (coalesce(started_at, ended_at, received_at) AT TIME ZONE 'UTC')::date AS day,
       count(*) AS calls,
       coalesce(sum(amount), 0) AS amount,
       coalesce(sum(billed_duration_s), 0) AS billed_duration_s,
       count(*) FILTER (WHERE amount IS NULL) AS calls_without_amount
FROM call_summaries
GROUP BY 1;
COMMENT ON VIEW cost_per_day IS 'what Plivo charged for the calls of a day; where the callback with the amount did not '
    'arrive, the call counts as one without';

CREATE VIEW hangup_causes AS
SELECT (coalesce(started_at, ended_at, received_at) AT TIME ZONE 'UTC')::date AS day,
       hangup_cause,
       hangup_cause_code,
       count(*) AS calls,
       count(*) FILTER (WHERE answered) AS answered
FROM call_summaries
GROUP BY 1, 2, 3;
COMMENT ON VIEW hangup_causes IS 'why the calls of a day ended, in Plivo''s words';

CREATE VIEW pin_failures AS
SELECT day,
       count(*) FILTER (WHERE lower(pin_authentication_status) = 'failed') AS failures,
       count(DISTINCT session_uuid) FILTER (WHERE lower(pin_authentication_status) = 'failed') AS sessions_with_failures,
       count(DISTINCT session_uuid) AS sessions_with_pins
FROM events
WHERE event_name = 'SessionPinAuthenticationStatus'
GROUP BY 1;
COMMENT ON VIEW pin_failures IS 'wrong PINs of a day, and of the sessions where PINs were asked for, those with wrong ones';

CREATE VIEW gaps AS
SELECT after.day,
       after.session_uuid,
       after.run,
       number AS missing_number,
       after.sequence_number AS given_up_before,
       after.received_at AS given_up_at,
       EXISTS (
           SELECT FROM events AS arrived
           WHERE arrived.session_uuid = after.session_uuid
             AND arrived.sequence_number = number
             AND arrived.sequence_order = 'late'
       ) AS arrived_late
FROM events AS after, unnest(after.missing) AS number;
COMMENT ON VIEW gaps IS 'numbers that did not arrive in time, one row each';
