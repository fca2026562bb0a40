// Package ui holds what a browser gets: templates, one style sheet, a sprite of
// state glyphs and a few small scripts, all embedded. It has no opinion about
// where values come from: it renders the view it is given, and knows no record,
// no route handler and no clock.
//
// There is no build step. A page is complete without scripts; scripts only make
// it current without a reload and let a long log be scrolled.
package ui

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"io"
	"io/fs"
	"path"
)

//go:embed templates static
var files embed.FS

// UI is the parsed templates and the assets. It is immutable and safe for
// concurrent use.
type UI struct {
	pages  *template.Template
	assets map[string]Asset // by URL path
	prefix string
}

// Asset is a file that pages refer to. Its URL names its content, so it may be
// cached for ever.
type Asset struct {
	Body        []byte
	ContentType string
}

var contentTypes = map[string]string{
	".css": "text/css; charset=utf-8",
	".js":  "text/javascript; charset=utf-8",
	".svg": "image/svg+xml",
}

// Load parses the templates and names the assets.
func Load() (*UI, error) {
	u := &UI{assets: map[string]Asset{}}
	static, err := fs.Sub(files, "static")
	if err != nil {
		return nil, err
	}
	if err := u.loadAssets(static); err != nil {
		return nil, err
	}
	sprite, err := fs.ReadFile(static, "sprite.svg")
	if err != nil {
		return nil, err
	}
	u.pages, err = template.New("").Funcs(u.funcs(template.HTML(sprite))).ParseFS(files, "templates/*.html")
	if err != nil {
		return nil, fmt.Errorf("parse templates: %w", err)
	}
	return u, nil
}

// loadAssets puts all assets under one prefix that is a digest of all of them:
// scripts import each other by relative names, and still get matching versions.
func (u *UI) loadAssets(static fs.FS) error {
	entries, err := fs.ReadDir(static, ".")
	if err != nil {
		return err
	}
	sum := sha256.New()
	bodies := map[string][]byte{}
	for _, e := range entries {
		b, err := fs.ReadFile(static, e.Name())
		if err != nil {
			return err
		}
		fmt.Fprintf(sum, "%s %d\n", e.Name(), len(b))
		sum.Write(b)
		bodies[e.Name()] = b
	}
	u.prefix = "/assets/" + hex.EncodeToString(sum.Sum(nil)[:8]) + "/"
	for name, b := range bodies {
		t, ok := contentTypes[path.Ext(name)]
		if !ok {
			return fmt.Errorf("asset %s: no content type for its extension", name)
		}
		u.assets[u.prefix+name] = Asset{Body: b, ContentType: t}
	}
	return nil
}

// Asset returns the asset at a URL path.
func (u *UI) Asset(urlPath string) (Asset, bool) {
	a, ok := u.assets[urlPath]
	return a, ok
}

// Assets returns the URL paths of all assets, in no order.
func (u *UI) Assets() []string {
	paths := make([]string, 0, len(u.assets))
	for p := range u.assets {
		paths = append(paths, p)
	}
	return paths
}

// Render executes the template of that name with the view. Nothing is written
// when it fails, so that half a page is never sent.
func (u *UI) Render(w io.Writer, name string, view any) error {
	var b bytes.Buffer
	if err := u.pages.ExecuteTemplate(&b, name, view); err != nil {
		return fmt.Errorf("render %s: %w", name, err)
	}
	_, err := b.WriteTo(w)
	return err
}

// URL returns the address of an asset.
func (u *UI) URL(name string) string { return u.prefix + name }
