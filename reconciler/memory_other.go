//go:build !linux

package main

// memoryFolder is a folder that is kept in memory; these systems have none of a name
// that is always the same.
func memoryFolder() (dir string, ok bool) { return "", false }
