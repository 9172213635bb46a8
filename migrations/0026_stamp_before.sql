-- While the file of an image is being changed: the stamp that it had before.
ALTER TABLE images ADD COLUMN stamp_before TEXT;
-- Images whose files are being changed, or whose change nobody goes on with, are few among many.
CREATE INDEX images_changing ON images (id) WHERE file_stamp IS NULL;
