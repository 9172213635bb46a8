-- Which master key seals secrets from now on, while and after they are rotated. No row: the one that the service was given.
CREATE TABLE sealing_key (
    -- Always 1: there is one row at most
    slot BIGINT PRIMARY KEY,
    key_id TEXT NOT NULL
);
