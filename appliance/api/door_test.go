package api

import (
	"encoding/json"
	"flag"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/auth"
	"github.com/holdfast-backup/holdfast/ingest/wire"
	"github.com/holdfast-backup/holdfast/internal/clock"
)

var update = flag.Bool("update", false, "write golden files")

var parameter = regexp.MustCompile(`\{[^}]*\}`)

// newDoors makes an API without a service: a request that gets past the door would panic.
func newDoors(refused *int) *API {
	return New(Options{Clock: clock.System, Version: "test", Refused: func(*http.Request, error) { *refused++ }})
}

// ask sends a request for a registered pattern through the gate.
func ask(h http.Handler, pattern string, p *auth.Principal) *httptest.ResponseRecorder {
	method, path, _ := strings.Cut(pattern, " ")
	r := httptest.NewRequest(method, parameter.ReplaceAllString(path, "x"), nil)
	if p != nil {
		r = r.WithContext(auth.With(r.Context(), *p))
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// kindIn reads an error's kind from an answer in the form of its side.
func kindIn(w *httptest.ResponseRecorder, route string) (holdfast.Kind, error) {
	if strings.Contains(route, " "+agentPrefix) {
		var f wire.Failure
		err := json.Unmarshal(w.Body.Bytes(), &f)
		return f.Kind, err
	}
	var body ErrorBody
	err := json.Unmarshal(w.Body.Bytes(), &body)
	return holdfast.KindOfCode(body.Failure.Code), err
}

// TestEveryRouteIsClosedWithoutAPrincipal enumerates what is registered, so that a new route cannot be forgotten.
func TestEveryRouteIsClosedWithoutAPrincipal(t *testing.T) {
	refused := 0
	a := newDoors(&refused)
	agent := &auth.Principal{Role: auth.Agent, Name: "hv1", Host: holdfast.HostID{ID: holdfast.NewID()}}
	nobody := &auth.Principal{Role: auth.Agent, Name: "no host"}
	admin := &auth.Principal{Role: auth.Admin, Name: "root"}
	type try struct {
		who  string
		p    *auth.Principal
		code int
	}
	for _, side := range []struct {
		name string
		h    http.Handler
		mux  *http.ServeMux
	}{{"local", a.Local(), a.local}, {"remote", a.Remote(), a.remote}} {
		if len(a.routes[side.mux]) < 5 {
			t.Fatalf("%s: only %d routes", side.name, len(a.routes[side.mux]))
		}
		for _, route := range append([]string{"GET /nothing/here"}, a.routes[side.mux]...) {
			tries := []try{{"nobody", nil, 401}}
			switch doors[route] {
			case anyone:
				if route != "POST "+wire.PathEnroll {
					t.Errorf("%s is open to anyone", route)
				}
				continue
			case agents:
				tries = append(tries, try{"an administrator", admin, 403}, try{"an agent without host", nobody, 403})
			case administrators:
				tries = append(tries, try{"an agent", agent, 403})
			}
			for _, c := range tries {
				before := refused
				w := ask(side.h, route, c.p)
				kind, err := kindIn(w, route)
				if err != nil || w.Code != c.code || kind != holdfast.Permission {
					t.Errorf("%s %s as %s: %d %s", side.name, route, c.who, w.Code, w.Body)
				}
				if refused != before+1 {
					t.Errorf("%s %s as %s: not recorded", side.name, route, c.who)
				}
			}
		}
	}
}

func TestUnknownPathIsNotFoundForAdministrators(t *testing.T) {
	refused := 0
	w := ask(newDoors(&refused).Local(), "GET /nothing/here", &auth.Principal{Role: auth.Admin})
	if w.Code != 404 || !strings.Contains(w.Body.String(), `"code":"not-found"`) {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
}

// TestDescriptionIsGolden keeps the API's description under review: every change of a route or a type shows up here.
func TestDescriptionIsGolden(t *testing.T) {
	refused := 0
	w := ask(newDoors(&refused).Local(), "GET /openapi.json", &auth.Principal{Role: auth.Admin})
	if w.Code != 200 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	var v any
	if err := json.Unmarshal(w.Body.Bytes(), &v); err != nil {
		t.Fatal(err)
	}
	got, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	const golden = "testdata/openapi.json"
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("the description changed; look at it and run the test with -update")
	}
}

func TestEveryKindHasAStatusAndACodeThatReadsBack(t *testing.T) {
	for k := holdfast.Internal; k <= holdfast.Cancelled; k++ {
		if status[k] == 0 || holdfast.KindOfCode(k.Code()) != k {
			t.Errorf("%v: status %d, code %q", k, status[k], k.Code())
		}
	}
}

func TestBodiesFromPeersAreBoundedAndStrict(t *testing.T) {
	refused := 0
	h := newDoors(&refused).Remote()
	for name, body := range map[string]string{
		"too long":    `{"key":"` + strings.Repeat("x", maxEnroll) + `"}`,
		"unknown key": `{"kex":"x"}`,
		"no JSON":     "HELO",
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("POST", wire.PathEnroll, strings.NewReader(body)))
		if w.Code != 400 || !strings.Contains(w.Body.String(), `"kind":3`) {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
}
