-- Which database this is. The folders of its pools bear its id, so that no service with another one takes them for its own.
CREATE TABLE database_id (
    -- Always 1: there is one row, made at the first start
    slot BIGINT PRIMARY KEY,
    id TEXT NOT NULL
);
