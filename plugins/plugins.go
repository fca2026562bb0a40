// Package plugins carries the standard plugins, one folder each: the manifest
// that compositions import as "github.com/maestro-cd/maestro/plugins/NAME", and
// the programs that agents run for it. It holds no logic.
package plugins

import "embed"

// Files holds the folder of every standard plugin, complete.
//
//go:embed all:shell all:git
var Files embed.FS
