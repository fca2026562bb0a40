//go:build !linux

package main

// harden does what it does on Linux alone.
func harden() {}
