-- Sequences whose values are divided among the members, so that no two of them ever give the same. From "first"
-- on every value belongs to one part: with strides to each in turn, with ranges to each a block. What was given
-- before lies before it. A part is never given to another node: what the first one drew of it is in use.

CREATE TABLE zodan.sequence (
    sequence  regclass PRIMARY KEY,
    policy    text NOT NULL CHECK (policy IN ('stride', 'range')),
    parts     integer NOT NULL CHECK (parts > 0),
    part      integer NOT NULL CHECK (part >= 0 AND part < parts),
    first     bigint NOT NULL,
    step      bigint NOT NULL CHECK (step <> 0),
    low       bigint NOT NULL,
    high      bigint NOT NULL,
    start     bigint NOT NULL,
    increment bigint NOT NULL,
    minimum   bigint NOT NULL,
    maximum   bigint NOT NULL
);
REVOKE ALL ON zodan.sequence FROM PUBLIC;
COMMENT ON TABLE zodan.sequence IS 'The sequences of this node whose values are divided among the members';
COMMENT ON COLUMN zodan.sequence.parts IS 'Into how many parts its values are divided';
COMMENT ON COLUMN zodan.sequence.part IS 'Which of them this node gives: its zodan.node.number';
COMMENT ON COLUMN zodan.sequence.first IS 'The first value that is divided; the same on every member, as are step, low and high';
COMMENT ON COLUMN zodan.sequence.step IS 'From one value to the next, of whichever part';
COMMENT ON COLUMN zodan.sequence.low IS 'The least value that is divided; high is the greatest';
COMMENT ON COLUMN zodan.sequence.increment IS 'What the sequence had here before, as are start, minimum and maximum';

-- The first ALTER changes nothing. It keeps everybody from drawing until the transaction ends, and makes other
-- sessions forget what they had drawn ahead: what is read then is what comes next.
CREATE FUNCTION zodan.divide_sequence(
    target regclass, policy text, parts integer, part integer, elsewhere jsonb DEFAULT NULL)
RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    own   zodan.sequence;
    here  pg_catalog.pg_sequence;
    last  bigint;
    called boolean;
    next  numeric; -- at the end of a sequence it is beyond bigint
    width numeric;
    start numeric;
    low   numeric;
    high  numeric;
    step  numeric;
    -- What others give next, of what was not divided: all before it is in use.
    passed CONSTANT numeric := elsewhere ->> 'passed';
    drawn  numeric;
BEGIN
    PERFORM zodan.unreplicated();
    SELECT s.* INTO own FROM zodan.sequence s WHERE s.sequence = target;
    IF (own.policy, own.parts, own.part) = (policy, parts, part) AND passed IS NULL THEN
        RETURN pg_catalog.to_jsonb(own);
    END IF;
    SELECT s.* INTO here FROM pg_catalog.pg_sequence s WHERE s.seqrelid = target;
    EXECUTE pg_catalog.format('ALTER SEQUENCE %s INCREMENT BY %s', target, here.seqincrement);
    SELECT s.* INTO here FROM pg_catalog.pg_sequence s WHERE s.seqrelid = target;
    EXECUTE pg_catalog.format('SELECT last_value, is_called FROM %s', target) INTO last, called;
    next := last::numeric + CASE WHEN called THEN here.seqincrement ELSE 0 END;
    drawn := next;
    IF own.sequence IS NULL AND elsewhere ->> 'first' IS NULL AND next NOT BETWEEN here.seqmin AND here.seqmax THEN
        RETURN NULL; -- it has come to its end
    END IF;
    -- Both leave a null out.
    next := CASE WHEN here.seqincrement > 0 THEN greatest(next, passed) ELSE least(next, passed) END;
    IF own.sequence IS NULL THEN
        own.start := here.seqstart;
        own.increment := here.seqincrement;
        own.minimum := here.seqmin;
        own.maximum := here.seqmax;
        own.first := coalesce((elsewhere ->> 'first')::numeric, least(greatest(next, here.seqmin), here.seqmax));
        own.step := coalesce((elsewhere ->> 'step')::bigint, here.seqincrement);
        own.low := coalesce((elsewhere ->> 'low')::bigint, here.seqmin);
        own.high := coalesce((elsewhere ->> 'high')::bigint, here.seqmax);
    END IF;
    own.sequence := target;
    own.policy := policy;
    own.parts := parts;
    own.part := part;
    step := own.step;
    low := own.low;
    high := own.high;
    IF policy = 'stride' THEN
        start := own.first + step * part;
        step := step * parts;
        -- Where it cycles, it comes back to its own values.
        IF here.seqcycle AND step > 0 THEN
            low := start;
        ELSIF here.seqcycle THEN
            high := start;
        END IF;
    ELSE
        width := div(div(CASE WHEN step > 0 THEN high ELSE low END - own.first, step) + 1, parts);
        start := own.first + step * width * part;
        low := least(start, start + step * (width - 1));
        high := greatest(start, start + step * (width - 1));
    END IF;
    -- The first of its values that was not passed yet. A quotient of numerics would be rounded.
    next := start + step * greatest(0, div(next - start + step - sign(step), step));
    IF width < 1 OR start NOT BETWEEN low AND high OR next NOT BETWEEN low AND high THEN
        RAISE EXCEPTION USING
            ERRCODE = 'sequence_generator_limit_exceeded',
            MESSAGE = pg_catalog.format('sequence %s has no values left for part %s of %s', target, part, parts),
            HINT = 'Make it a bigint sequence on every member: ALTER SEQUENCE ... AS bigint.';
    END IF;
    EXECUTE pg_catalog.format(
        'ALTER SEQUENCE %s INCREMENT BY %s MINVALUE %s MAXVALUE %s START WITH %s RESTART WITH %s',
        target, step, low, high, start, next);
    DELETE FROM zodan.sequence s WHERE s.sequence = target;
    INSERT INTO zodan.sequence SELECT own.*;
    RETURN pg_catalog.to_jsonb(own) || pg_catalog.jsonb_build_object('passed', drawn::text);
END
$$;
REVOKE ALL ON FUNCTION zodan.divide_sequence(regclass, text, integer, integer, jsonb) FROM PUBLIC;
COMMENT ON FUNCTION zodan.divide_sequence(regclass, text, integer, integer, jsonb) IS
    'Makes the sequence give only the values of one part, from its next one on, and returns its row of zodan.sequence; null if it has come to its end; elsewhere is that row of the member that was first, and may say as passed what others give next: what comes before that is given no more; passed of the result is what the sequence would have given next; 2200H if nothing is left for the part';

CREATE FUNCTION zodan.realign_sequences() RETURNS SETOF regclass
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    own  zodan.sequence;
    last bigint;
BEGIN
    -- A range keeps its sequence within its bounds.
    FOR own IN SELECT s.* FROM zodan.sequence s JOIN pg_catalog.pg_class c ON c.oid = s.sequence
                WHERE s.policy = 'stride' ORDER BY 1 LOOP
        EXECUTE pg_catalog.format('SELECT last_value FROM %s', own.sequence::regclass) INTO last;
        CONTINUE WHEN (last::numeric - own.first - own.step::numeric * own.part) % (own.step::numeric * own.parts) = 0;
        PERFORM zodan.divide_sequence(
            own.sequence, own.policy, own.parts, own.part, pg_catalog.jsonb_build_object('passed', last::text));
        RETURN NEXT own.sequence;
    END LOOP;
END
$$;
REVOKE ALL ON FUNCTION zodan.realign_sequences() FROM PUBLIC;
COMMENT ON FUNCTION zodan.realign_sequences() IS
    'Brings sequences that are divided by strides, and that somebody has set to a value of another node with setval or ALTER SEQUENCE, back to values of the node''s own, beyond where they are; returns those sequences';

CREATE FUNCTION zodan.restore_sequences(names text[]) RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    own      zodan.sequence;
    restored integer := 0;
BEGIN
    PERFORM zodan.unreplicated();
    FOR own IN DELETE FROM zodan.sequence s USING pg_catalog.unnest(names) n
                WHERE s.sequence = pg_catalog.to_regclass(n) RETURNING s.* LOOP
        EXECUTE pg_catalog.format(
            'ALTER SEQUENCE %s INCREMENT BY %s MINVALUE %s MAXVALUE %s START WITH %s',
            own.sequence, own.increment, own.minimum, own.maximum, own.start);
        restored := restored + 1;
    END LOOP;
    RETURN restored;
END
$$;
REVOKE ALL ON FUNCTION zodan.restore_sequences(text[]) FROM PUBLIC;
COMMENT ON FUNCTION zodan.restore_sequences(text[]) IS
    'Makes sequences that are divided what they were before, from their present values on, and returns how many there were';
