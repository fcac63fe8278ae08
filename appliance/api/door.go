package api

import (
	"errors"
	"net/http"
	"reflect"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/auth"
	"github.com/holdfast-backup/holdfast/ingest/wire"
	"github.com/holdfast-backup/holdfast/internal/clock"
)

// access says who may use a route.
type access int

const (
	administrators access = iota // the zero value: what is not listed below is closed
	agents
	anyPrincipal
	anyone
)

// doors is the one table of who may use what. A route is a method and a pattern as registered.
var doors = map[string]access{
	"POST " + wire.PathEnroll:    anyone, // the access key in the body is the proof
	"POST " + wire.PathInventory: agents,
	"GET " + wire.PathTasks:      agents,
	"POST " + wire.PathReport:    agents,
	"GET /v1/health":             anyPrincipal,
}

// Options is what an API is made of.
type Options struct {
	Service Service
	Agents  Agents
	Clock   clock.Clock
	Version string
	Refused func(r *http.Request, err error) // records who was turned away at the door; may be nil
}

// An API serves the two sides of the appliance: Local for the unix socket, Remote for the port.
type API struct {
	o      Options
	local  *http.ServeMux
	remote *http.ServeMux
	routes map[*http.ServeMux][]string
	huma   huma.API

	requests requests
}

// New makes the API. Nothing runs until a handler is served.
func New(o Options) *API {
	// Assigned, not chosen: huma has one form of errors per process, and every API here wants this one.
	installErrors()
	if o.Clock == nil {
		o.Clock = clock.System
	}
	a := &API{o: o, local: http.NewServeMux(), remote: http.NewServeMux(), routes: map[*http.ServeMux][]string{}, requests: newRequests()}
	config := huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI:    "3.1.0",
			Info:       &huma.Info{Title: "Holdfast", Version: o.Version, Description: "The appliance's API. Errors have the form {\"error\":{\"code\",\"message\",\"hint\"}}."},
			Components: &huma.Components{Schemas: huma.NewMapRegistry("#/components/schemas/", schemaName)},
		},
		OpenAPIPath:   "/openapi",
		Formats:       map[string]huma.Format{"application/json": huma.DefaultJSONFormat, "json": huma.DefaultJSONFormat},
		DefaultFormat: "application/json",
	}
	a.huma = humago.New(recorder{a, a.local}, config)
	a.registerREST()
	a.handle(a.local, "GET /metrics", a.metrics().ServeHTTP)
	health := func(w http.ResponseWriter, r *http.Request) { writeJSON(w, o.Service.Health(r.Context())) }
	a.handle(a.remote, "GET /v1/health", health)
	a.registerAgents()
	return a
}

// schemaName names a type in the API's description: types of package notify say so, since their names are common words.
func schemaName(t reflect.Type, hint string) string {
	name := huma.DefaultSchemaNamer(t, hint)
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if strings.HasSuffix(t.PkgPath(), "/notify") {
		return "Notify" + name
	}
	return name
}

// Local returns the handler for the unix socket. The door in front of it puts the principal into the context.
func (a *API) Local() http.Handler { return a.counted("local", a.local, a.gate(a.local)) }

// Remote returns the handler for the port: agents' calls and health, nothing else yet.
func (a *API) Remote() http.Handler { return a.counted("agents", a.remote, a.gate(a.remote)) }

// recorder registers huma's routes like all others.
type recorder struct {
	a   *API
	mux *http.ServeMux
}

func (r recorder) HandleFunc(pattern string, h func(http.ResponseWriter, *http.Request)) {
	r.a.handle(r.mux, pattern, h)
}

func (r recorder) ServeHTTP(w http.ResponseWriter, q *http.Request) { r.mux.ServeHTTP(w, q) }

func (a *API) handle(mux *http.ServeMux, pattern string, h http.HandlerFunc) {
	a.routes[mux] = append(a.routes[mux], pattern)
	mux.HandleFunc(pattern, h)
}

// gate lets a request through to the mux if the principal in its context may use the route.
func (a *API) gate(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, pattern := mux.Handler(r)
		if code, err := allowed(r, pattern); err != nil {
			if a.o.Refused != nil {
				a.o.Refused(r, err)
			}
			writeError(w, r, code, err)
			return
		}
		if pattern == "" || !slices.Contains(a.routes[mux], pattern) {
			writeError(w, r, http.StatusNotFound, holdfast.Errorf(holdfast.NotExist, "", "there is no %s %s", r.Method, r.URL.Path).
				Advise("/openapi.json lists what there is"))
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		mux.ServeHTTP(w, r)
	})
}

// maxBody bounds a request's body, in bytes. The longest is an inventory: thousands of VMs of some hundred bytes a disk.
const maxBody = 16 << 20

func allowed(r *http.Request, pattern string) (int, error) {
	need := doors[pattern]
	if need == anyone {
		return 0, nil
	}
	role := auth.Admin
	if need == agents {
		role = auth.Agent
	}
	p, known, err := auth.Require(r.Context(), role)
	switch {
	case !known:
		return StatusUnauthenticated, err
	case need == anyPrincipal:
		return 0, nil
	case err != nil:
		return http.StatusForbidden, err
	case p.Role == auth.Agent && p.Host.IsZero():
		return http.StatusForbidden, errNoHost
	}
	return 0, nil
}

var errNoHost error = holdfast.Errorf(holdfast.Permission, "", "the certificate names no host")

// decodeBody reads a JSON body strictly: an unknown key is a typing error or a newer peer, and either must hear of it.
func decodeBody(r *http.Request, into any) error {
	dec := newStrictDecoder(r.Body)
	if err := dec.Decode(into); err != nil {
		var long *http.MaxBytesError
		if errors.As(err, &long) {
			return holdfast.Errorf(holdfast.Invalid, "read request", "more than %d bytes", long.Limit)
		}
		return holdfast.Errorf(holdfast.Invalid, "read request", "%w", err)
	}
	return nil
}
