-- A key whose request has begun to change an image is looked for by that image: 'begun:<id>', 'overtaken:<id>'.
CREATE INDEX idempotency_outcome ON idempotency (outcome);
