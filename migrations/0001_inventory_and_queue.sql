-- One history for SQLite and PostgreSQL: ids are UUIDv7 as text, times are Unix milliseconds, flags are 0 or 1,
-- structured values are JSON as text.

-- One row a number. 'writer' is the row that a PostgreSQL write transaction locks first, so that writes are serial
-- there as they are in SQLite; 'event' is the last sequence number given out.
CREATE TABLE counters (
    name TEXT PRIMARY KEY,
    value BIGINT NOT NULL
);
INSERT INTO counters (name, value) VALUES ('writer', 0), ('event', 0);

-- State 'reserved' holds the name for a job or a request that is still making the file; such rows are not shown.
CREATE TABLE images (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    pool TEXT NOT NULL,
    file TEXT NOT NULL,
    format TEXT NOT NULL,
    state TEXT NOT NULL,
    virtual_size BIGINT NOT NULL,
    allocated_size BIGINT NOT NULL,
    file_size BIGINT NOT NULL,
    -- No action on delete: a base cannot go while an overlay's row is there.
    backing_id TEXT REFERENCES images (id),
    -- The base's generation that this overlay was made on or last bound to.
    backing_generation BIGINT,
    -- The base as the overlay's own header names it.
    backing_name TEXT,
    generation BIGINT NOT NULL,
    -- Size, time and inode of the file after our last change of it.
    file_stamp TEXT,
    labels TEXT NOT NULL,
    protected BIGINT NOT NULL,
    encrypted BIGINT NOT NULL,
    uploaded_bytes BIGINT,
    problem TEXT,
    -- The job or request that a reserved row belongs to.
    reserved_by TEXT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    UNIQUE (pool, name),
    UNIQUE (pool, file)
);
CREATE INDEX images_by_backing ON images (backing_id);
CREATE INDEX images_by_reservation ON images (reserved_by);

CREATE TABLE image_labels (
    image_id TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (image_id, key)
);
CREATE INDEX image_labels_by_key ON image_labels (key, value);

-- One row is a job's state and its place in the queue.
CREATE TABLE jobs (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    -- queued, running, succeeded, failed, cancelled
    state TEXT NOT NULL,
    -- What the user wants of it: run, pause, cancel
    wish TEXT NOT NULL,
    priority BIGINT NOT NULL,
    rate_limit BIGINT,
    pool TEXT,
    -- The images it names, as shown (JSON).
    image_ids TEXT NOT NULL,
    request TEXT NOT NULL,
    payload TEXT NOT NULL,
    result TEXT,
    error_code TEXT,
    error_detail TEXT,
    done_bytes BIGINT NOT NULL,
    total_bytes BIGINT,
    bytes_per_second BIGINT,
    attempt BIGINT NOT NULL,
    -- Fence: grows with every claim; only the holder of the newest may write.
    token BIGINT NOT NULL,
    worker TEXT,
    lease_until BIGINT,
    run_after BIGINT NOT NULL,
    version BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    started_at BIGINT,
    finished_at BIGINT
);
CREATE INDEX jobs_by_state ON jobs (state, priority, id);

-- The images that a job names, to find jobs by image. They may be gone by now.
CREATE TABLE job_images (
    job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    position BIGINT NOT NULL,
    image_id TEXT NOT NULL,
    PRIMARY KEY (job_id, position)
);
CREATE INDEX job_images_by_image ON job_images (image_id);

CREATE TABLE job_steps (
    job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    position BIGINT NOT NULL,
    at BIGINT NOT NULL,
    text TEXT NOT NULL,
    PRIMARY KEY (job_id, position)
);

-- Who reads (shared) or changes (exclusive) an image. A job's locks live until it ends; those of a request expire.
CREATE TABLE image_locks (
    image_id TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
    holder TEXT NOT NULL,
    mode TEXT NOT NULL,
    job_id TEXT REFERENCES jobs (id) ON DELETE CASCADE,
    process TEXT,
    expires_at BIGINT,
    PRIMARY KEY (image_id, holder)
);
CREATE INDEX image_locks_by_holder ON image_locks (holder);

CREATE TABLE events (
    seq BIGINT PRIMARY KEY,
    kind TEXT NOT NULL,
    job_id TEXT,
    image_id TEXT,
    at BIGINT NOT NULL,
    data TEXT NOT NULL
);
CREATE INDEX events_by_job ON events (job_id, seq);

CREATE TABLE idempotency (
    key TEXT PRIMARY KEY,
    request_hash TEXT NOT NULL,
    -- What the first request led to, as 'image:<id>', 'job:<id>', 'secret:<id>'
    outcome TEXT NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE TABLE secrets (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    -- Base64 of nonce and AES-256-GCM ciphertext; the id is the associated data.
    sealed TEXT NOT NULL,
    key_id TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
