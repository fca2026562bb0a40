package durable

// SyncDir does nothing: Windows has no fsync of a directory, and NTFS journals renames.
func SyncDir(string) error { return nil }
