package testkit

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"slices"
	"strings"
	"time"
)

// githubApp is the App number 42, installed for the repository.
type githubApp struct {
	key    *rsa.PrivateKey
	pem    []byte
	grants map[string]string
	issued int
}

// UseApp makes the fake one that is spoken to as a GitHub App with these permissions,
// and no more by the token that it began with. Maestro's account is that of the App.
func (g *GitHub) UseApp(grants map[string]string) {
	g.t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		g.t.Fatal(err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.app = &githubApp{key: key, grants: grants, pem: pem.EncodeToMemory(&pem.Block{
		Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key),
	})}
	g.setToken("ghs_of_nobody_yet")
}

// AppKey is the private key of the App, as GitHub gives it out.
func (g *GitHub) AppKey() []byte { return g.app.pem }

// setToken changes what requests must carry. Called with mu.
func (g *GitHub) setToken(token string) {
	g.Token = token
	g.git.mu.Lock()
	defer g.git.mu.Unlock()
	g.git.password = token
}

// Revoke makes the token that requests carry one that is not accepted. An App gets
// another one when it asks.
func (g *GitHub) Revoke() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.setToken("ghs_" + rand.Text())
}

// Issued returns how many tokens were issued to the App.
func (g *GitHub) Issued() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.app.issued
}

// byKey are the paths that an App asks for by its key.
func byKey(path string) bool {
	return path == "/app" || strings.HasPrefix(path, "/app/") || path == repoPath+"/installation"
}

// known reports whether a request proves who asks. Called with mu.
func (g *GitHub) known(r *http.Request, path string) bool {
	given, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if g.app == nil || !byKey(path) {
		return given == g.Token
	}
	head, rest, _ := strings.Cut(given, ".")
	claims, signature, _ := strings.Cut(rest, ".")
	e := base64.RawURLEncoding
	var h struct{ Alg string }
	var c struct {
		Iat, Exp int64
		Iss      string
	}
	rawHead, err1 := e.DecodeString(head)
	rawClaims, err2 := e.DecodeString(claims)
	mac, err3 := e.DecodeString(signature)
	if err1 != nil || err2 != nil || err3 != nil || json.Unmarshal(rawHead, &h) != nil || json.Unmarshal(rawClaims, &c) != nil {
		return false
	}
	now := time.Now().Unix()
	sum := sha256.Sum256([]byte(head + "." + claims))
	return h.Alg == "RS256" && c.Iss == "42" && c.Iat <= now && c.Exp > now && c.Exp <= now+600 &&
		rsa.VerifyPKCS1v15(&g.app.key.PublicKey, crypto.SHA256, sum[:], mac) == nil
}

// appRoute answers what an App asks for by its key. Called with mu.
func (g *GitHub) appRoute(path string, body []byte) (reply, bool) {
	switch path {
	case "/app":
		return reply{http.StatusOK, obj{"id": 42, "slug": "maestro", "permissions": g.app.grants}}, true
	case "/users/maestro[bot]":
		self := g.user(MaestroLogin)
		self["user_view_type"] = "private"
		return reply{http.StatusOK, self}, true
	case repoPath + "/installation":
		return reply{http.StatusOK, obj{"id": 4242, "app_id": 42, "app_slug": "maestro", "permissions": g.app.grants}}, true
	case "/app/installations/4242/access_tokens":
		var ask struct {
			Repositories []string
			Permissions  map[string]string
		}
		if err := json.Unmarshal(body, &ask); err != nil || !slices.Equal(ask.Repositories, []string{"ops"}) || len(ask.Permissions) == 0 {
			g.t.Errorf("the token is for more than it needs: %s %v", body, err)
		}
		for name, level := range ask.Permissions {
			if has := g.app.grants[name]; has != level && has != "write" {
				g.t.Errorf("the token asks for %s: %s, and %q was granted", name, level, has)
				return reply{http.StatusUnprocessableEntity, nil}, true
			}
		}
		g.app.issued++
		g.setToken("ghs_canary" + rand.Text())
		return reply{http.StatusCreated, obj{"token": g.Token, "expires_at": stamp(time.Now().Add(time.Hour))}}, true
	}
	return reply{}, false
}
