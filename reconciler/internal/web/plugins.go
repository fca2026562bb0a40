package web

import (
	"net/http"
	"slices"
	"strings"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

type pluginsView struct {
	page
	Plugins []pluginView
}

type pluginView struct {
	pipeline.Plugin
	IconURL string
}

func (s *server) plugins(r *http.Request) (view, error) {
	plugins, err := s.src.Plugins(r.Context())
	if err != nil {
		return nil, err
	}
	v := &pluginsView{page: s.plainPage("Plugins", "plugins")}
	v.Topics = []string{topicCommits}
	for _, p := range plugins {
		row := pluginView{Plugin: p}
		row.Tasks = slices.Clone(p.Tasks)
		for i := range row.Tasks {
			// Comments on a definition begin with its name, which stands beside it.
			t := &row.Tasks[i]
			t.Description = strings.TrimPrefix(t.Description, t.Definition+" ")
		}
		if p.Icon != "" {
			row.IconURL = "/plugins/" + string(p.Name) + "/icon"
		}
		v.Plugins = append(v.Plugins, row)
	}
	return v, nil
}

// iconTypes are the images that are served. A browser that is sent elsewhere to
// look at an SVG by itself finds a policy that lets nothing in it run.
var iconTypes = map[string]bool{
	"image/svg+xml": true, "image/png": true, "image/jpeg": true, "image/webp": true, "image/gif": true,
}

func (s *server) icon(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("plugin")
	if !pipeline.ValidName(name) {
		return fault.New(fault.NotFound, "there is no plugin %.80q", name)
	}
	data, mediaType, err := s.src.Icon(r.Context(), pipeline.PluginName(name))
	if err != nil {
		return err
	}
	if !iconTypes[mediaType] {
		return fault.New(fault.NotFound, "the icon of plugin %s is of a type that is not shown", name)
	}
	h := w.Header()
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; sandbox; frame-ancestors 'none'")
	h.Set("Cache-Control", "private, max-age=300")
	s.send(w, r, http.StatusOK, mediaType, data)
	return nil
}
