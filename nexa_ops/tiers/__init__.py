"""Where a laboratory's files lie beside itself: scratch, durable and shared storage, as POLICY.md describes them."""
