package config

import (
	"fmt"
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"cuelang.org/go/cue"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

func (c *checker) repositories() {
	c.each("repositories", func(name string, v cue.Value) {
		pos, _ := c.all.label("repositories", name)
		if err := v.Validate(cue.Concrete(true)); err != nil {
			c.complain(c.x.errors(err)...)
			return
		}
		r := pipeline.Repository{Name: name, Pos: pos, URL: text(get(v, "url"))}
		r.Credentials = pipeline.SecretName(text(get(v, "credentials", "secret")))
		_ = decode(get(v, "trusted"), &r.Trusted) // a list of texts, checked by CUE
		if why, help := refusedAddress(r.URL); why != "" {
			at, _ := c.all.value("repositories", name, "url")
			d := diag(codeAddress, at, "repository %q: its address is refused: %s", name, why)
			d.Help = help
			c.complain(d)
			return
		}
		if r.Credentials != "" && !strings.HasPrefix(r.URL, "http") {
			at, _ := c.all.label("repositories", name, "credentials")
			d := diag(codeAddress, at, "repository %q: a path takes no credentials", name)
			d.Help = "remove them: the server reads the folder as its own user"
			c.complain(d)
			return
		}
		c.res.Repositories = append(c.res.Repositories, r)
	})
}

// plainHost is a name as people write it: no address in disguise, no escapes.
var plainHost = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`)

// refusedAddress says why an address of a source repository is not taken, and what to
// write instead; "" when it is. It knows the forms only: which places the server may
// reach is for its operator. An address may hold a password, so none is repeated.
func refusedAddress(s string) (why, help string) {
	const form = "write https://HOST/PATH, or the absolute path of a repository"
	control := func(r rune) bool { return r <= 0x20 || r >= 0x7f && r < 0xa0 || r == '\\' }
	switch {
	case s == "":
		return "it is empty", form
	case strings.ContainsFunc(s, control):
		return "it holds a space, a backslash or a control character", form
	case strings.HasPrefix(s, "/"):
		if path.Clean(s) != s {
			return "the path is not plain", "write it as " + strconv.Quote(path.Clean(s))
		}
		return "", ""
	case !strings.Contains(s, "://"):
		if strings.Contains(s, ":") && !strings.Contains(s, "::") {
			return "ssh addresses are not supported", "write https:// and give a token as credentials"
		}
		return "it is neither a URL nor an absolute path", form
	}
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return "it is not a URL", form
	case u.User != nil:
		return "it holds a user or a password", `give them apart: credentials: secret: "NAME"`
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.HasSuffix(s, "#") || u.Opaque != "" || strings.Contains(s, "%"):
		return "it has a query, a fragment or an escape", "write the plain clone address"
	case path.Clean("/"+u.Path) != strings.TrimSuffix(u.Path, "/") || len(u.Path) < 2:
		return "its path is not plain, or missing", form
	case u.Scheme == "file":
		if u.Host != "" {
			return "a file:// address names no machine", "write file:///PATH"
		}
		return "", ""
	case u.Scheme == "ssh" || u.Scheme == "git+ssh":
		return "ssh addresses are not supported", "write https:// and give a token as credentials"
	case u.Scheme != "https" && u.Scheme != "http":
		return "it is none of https://, file:// and a path", form
	}
	return refusedHost(u)
}

func refusedHost(u *url.URL) (why, help string) {
	const name = "write the host by its name"
	host, local := u.Hostname(), u.Hostname() == "localhost"
	if port := u.Port(); port != "" || strings.HasSuffix(u.Host, ":") {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || port[0] == '0' {
			return "its port is not a number from 1 to 65535", "leave it out"
		}
	}
	ip, err := netip.ParseAddr(host)
	switch {
	case err != nil && (!plainHost.MatchString(strings.ToLower(host)) || numeric(host)):
		return "its host is not written as a plain name", name
	case err == nil && (ip.Is4In6() || ip.Zone() != "" || ip.String() != strings.ToLower(host)):
		return "its host is another form of an IP address", name
	case err == nil && (ip.IsUnspecified() || ip.IsMulticast() || ip.IsLinkLocalUnicast()):
		return "no repository is at such an IP address", name
	case err == nil:
		local = ip.IsLoopback()
	}
	if u.Scheme == "http" && !local {
		return "http:// would send content and credentials unprotected", "write https://"
	}
	return "", ""
}

// numeric recognises what some resolvers take for an IP address, as 127.1, 0x7f.1 and
// 2130706433: no name ends in a label that is a number.
func numeric(host string) bool {
	last := host[strings.LastIndexByte(host, '.')+1:]
	_, err := strconv.ParseUint(last, 0, 64)
	return err == nil || strings.Trim(last, "0123456789") == ""
}

// checkRepositories looks at the secrets that source repositories name, and at one
// address under two names.
func (r *repository) checkRepositories() {
	at := map[string]pipeline.Repository{}
	say := func(pos pipeline.Position, d pipeline.Diagnostic) {
		d.Unit = path.Dir(pos.File)
		r.cfg.Diagnostics = append(r.cfg.Diagnostics, d)
	}
	for _, repo := range r.cfg.Repositories {
		if other, twice := at[repo.URL]; twice {
			d := warn(codeDuplicate, repo.Pos, "repository %q has the address of repository %q", repo.Name, other.Name)
			d.Note = fmt.Sprintf("the other is at %s; each push counts for both", other.Pos)
			say(repo.Pos, d)
		}
		at[repo.URL] = repo
		if known := secretNames(r.cfg.Secrets); repo.Credentials != "" && !slices.Contains(known, string(repo.Credentials)) {
			d := diag(codeSecret, repo.Pos, "repository %q refers to secret %q, which nothing declares", repo.Name, repo.Credentials)
			d.Help = fmt.Sprintf("declare it in secrets/%s.cue: secrets: %s: from: file: \"/PATH\"", repo.Credentials, quoteLabel(string(repo.Credentials)))
			say(repo.Pos, withHelp(d, didYouMean(string(repo.Credentials), known)))
		}
	}
}

// repositoryNames are the source repositories that are written, broken ones too: what
// is wrong with those is said where they are.
func (r *repository) repositoryNames() []string {
	var out []string
	for _, res := range r.results {
		for _, m := range res.Declared {
			if m.Kind == mentionRepository {
				out = append(out, m.Name)
			}
		}
	}
	return out
}
