-- What a job has to know when another attempt goes on with it: how far a file is filled, what the content was before (JSON).
CREATE TABLE job_journal (
    job_id TEXT PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE,
    entry TEXT NOT NULL
);

-- Bytes that a running job will still need in its pool, at most.
ALTER TABLE jobs ADD COLUMN reserved_bytes BIGINT NOT NULL DEFAULT 0;

-- The secrets that open an image, by role: an option of its format (encrypt.key-secret) -> id (JSON). The table beside it finds the
-- images of a secret and keeps the secret alive.
ALTER TABLE images ADD COLUMN secrets TEXT NOT NULL DEFAULT '{}';
CREATE TABLE image_secrets (
    image_id TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
    role TEXT NOT NULL,
    secret_id TEXT NOT NULL REFERENCES secrets (id),
    PRIMARY KEY (image_id, role)
);
CREATE INDEX image_secrets_by_secret ON image_secrets (secret_id);
