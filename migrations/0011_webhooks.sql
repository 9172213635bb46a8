-- Whom to tell what happened. Events go out in order; 'delivered' is the number of the last one that went out or was not
-- wanted. 'next_try' is when a process may take the row up: in the future while one has it, or after a failure.
CREATE TABLE webhooks (
    id TEXT PRIMARY KEY,
    url TEXT NOT NULL,
    -- JSON list of event types
    events TEXT NOT NULL,
    sealed TEXT NOT NULL,
    key_id TEXT NOT NULL,
    delivered BIGINT NOT NULL,
    failures BIGINT NOT NULL,
    problem TEXT,
    next_try BIGINT NOT NULL,
    created_at BIGINT NOT NULL
);
