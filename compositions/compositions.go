// Package compositions carries the example ops repository: what `reconciler demo`
// pushes, and what the documentation shows. It has no logic.
package compositions

import "embed"

// Files is the repository's tree, without the schema that an author's checkout
// has below cue.mod/pkg.
//
//go:embed ops.cue all:cue.mod all:compositions all:plugins all:policy all:pools all:site
var Files embed.FS
