// Package schema carries the CUE definitions that every ops repository is
// checked against, import path "github.com/maestro-cd/maestro". It holds no
// logic: internal/config reads the files and decides.
package schema

import "embed"

// Files holds schema.cue.
//
//go:embed schema.cue
var Files embed.FS
