package config

import (
	"embed"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/plugins"
	"github.com/maestro-cd/maestro/schema"
)

// builtinNames are the standard plugins, sorted.
var builtinNames = sync.OnceValue(func() []string {
	entries, err := plugins.Files.ReadDir(".")
	if err != nil {
		return nil // an embed.FS has a root
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	slices.Sort(names)
	return names
})

// BuiltinPlugin returns the folder of a standard plugin and the Git tree id that
// pins it, "git:…". Any other name is fault.NotFound.
func BuiltinPlugin(name pipeline.PluginName) (fs.FS, pipeline.Digest, error) {
	if !slices.Contains(builtinNames(), string(name)) {
		return nil, "", fault.New(fault.NotFound, "no standard plugin is called %q", name)
	}
	dir, err := fs.Sub(plugins.Files, string(name))
	if err != nil {
		return nil, "", fault.New(fault.Internal, "standard plugin %s: %w", name, err)
	}
	hash, err := FSTree(dir).Hash(".")
	if err != nil {
		return nil, "", fault.New(fault.Internal, "standard plugin %s: %w", name, err)
	}
	return dir, pipeline.Digest("git:" + hash), nil
}

// vendorDir is where CUE looks for a module that is kept in the repository.
const vendorDir = "cue.mod/pkg/" + schemaPath

// BundledFiles are the CUE files of the schema and of the standard plugins, by
// their path below cue.mod/pkg/github.com/maestro-cd/maestro. With them in place,
// "cue vet -c=false ./..." and editors know what the reconciler knows.
func BundledFiles() map[string][]byte {
	out := map[string][]byte{}
	if b, err := schema.Files.ReadFile("schema.cue"); err == nil {
		out["schema.cue"] = b
	}
	for _, name := range builtinNames() {
		p := "plugins/" + name + "/plugin.cue"
		if b, err := plugins.Files.ReadFile(name + "/plugin.cue"); err == nil {
			out[p] = b
		}
	}
	return out
}

// Vendor writes BundledFiles into a checkout, and removes what an earlier version
// left there. dir is the root of the checkout.
func Vendor(dir string) error {
	root := filepath.Join(dir, filepath.FromSlash(vendorDir))
	if err := os.RemoveAll(root); err != nil {
		return fault.New(fault.Internal, "vendor the schema: %w", err)
	}
	for name, text := range BundledFiles() {
		p := filepath.Join(root, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return fault.New(fault.Internal, "vendor the schema: %w", err)
		}
		if err := os.WriteFile(p, text, 0o644); err != nil {
			return fault.New(fault.Internal, "vendor the schema: %w", err)
		}
	}
	return nil
}

//go:embed init
var initFiles embed.FS

// InitFiles are the files of an empty ops repository with one composition that
// runs, by their path from its root.
func InitFiles() map[string][]byte {
	out := map[string][]byte{}
	_ = fs.WalkDir(initFiles, "init", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := initFiles.ReadFile(p)
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(p, "init/")
		if name == "gitignore" {
			name = ".gitignore" // a file of that name would be one here, too
		}
		out[name] = b
		return nil
	})
	for name, text := range BundledFiles() {
		out[vendorDir+"/"+name] = text
	}
	return out
}
