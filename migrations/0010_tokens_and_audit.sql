-- Bearer tokens. Kept is the SHA-256 of the token: it has 256 random bits, so there is nothing to guess and no need to be
-- slow.
CREATE TABLE tokens (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    -- reader, operator, admin
    role TEXT NOT NULL,
    hash TEXT NOT NULL UNIQUE,
    created_at BIGINT NOT NULL,
    expires_at BIGINT
);

-- Who asked for what change, when, and how it ended. Bounded: the oldest rows go first.
CREATE TABLE audit (
    id TEXT PRIMARY KEY,
    at BIGINT NOT NULL,
    -- The token's name, the certificate's subject, or 'anonymous'
    caller TEXT NOT NULL,
    role TEXT,
    transport TEXT NOT NULL,
    action TEXT NOT NULL,
    target TEXT NOT NULL,
    outcome TEXT NOT NULL,
    request_id TEXT
);
