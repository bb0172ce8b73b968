"""Reports: from records to what a person reads.  Needs no device library."""
