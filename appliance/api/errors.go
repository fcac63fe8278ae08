package api

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/wire"
)

// Failure is an error as the API and the CLI show it.
type Failure struct {
	Code    string `json:"code" doc:"the kind of error"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty" doc:"what to do next"`
}

// ErrorBody is the body of every answer that is not a success.
type ErrorBody struct {
	Failure Failure `json:"error"`
	status  int
}

// Error implements error.
func (e *ErrorBody) Error() string { return e.Failure.Message }

// GetStatus implements huma.StatusError.
func (e *ErrorBody) GetStatus() int { return e.status }

// StatusUnauthenticated is answered where nobody has shown who they are; 403 where somebody has, and may not.
const StatusUnauthenticated = http.StatusUnauthorized

// status is the one table from kinds of errors to HTTP.
var status = map[holdfast.Kind]int{
	holdfast.Internal:    http.StatusInternalServerError,
	holdfast.NotExist:    http.StatusNotFound,
	holdfast.Exist:       http.StatusConflict,
	holdfast.Invalid:     http.StatusBadRequest,
	holdfast.Permission:  http.StatusForbidden,
	holdfast.Corrupt:     http.StatusInternalServerError,
	holdfast.Offline:     http.StatusServiceUnavailable,
	holdfast.NoSpace:     http.StatusInsufficientStorage,
	holdfast.Immutable:   http.StatusLocked,
	holdfast.Busy:        http.StatusConflict,
	holdfast.Transient:   http.StatusServiceUnavailable,
	holdfast.Unsupported: http.StatusNotImplemented,
	holdfast.Cancelled:   499, // nobody waits for the answer any more
}

// FailureOf shows an error.
func FailureOf(err error) Failure {
	return Failure{Code: holdfast.KindOf(err).Code(), Message: err.Error(), Hint: holdfast.HintOf(err)}
}

// Err turns a failure received back into an error of its kind.
func (f Failure) Err() *holdfast.Error {
	return &holdfast.Error{Kind: holdfast.KindOfCode(f.Code), Hint: f.Hint, Err: errors.New(f.Message)}
}

func bodyOf(err error) *ErrorBody {
	return &ErrorBody{Failure: FailureOf(err), status: status[holdfast.KindOf(err)]}
}

// writeError answers a request outside huma. Agents get a wire.Failure, which keeps the kind's number.
func writeError(w http.ResponseWriter, r *http.Request, code int, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	var body any = ErrorBody{Failure: FailureOf(err)}
	if strings.HasPrefix(r.URL.Path, agentPrefix) {
		body = wire.FailureOf(err)
	}
	_ = json.NewEncoder(w).Encode(body) // the peer may be gone; there is nobody to tell
}

// WriteError answers a request with an error in the form of the API. It is for a door that refuses before the API sees the request.
func WriteError(w http.ResponseWriter, r *http.Request, err error) {
	writeError(w, r, status[holdfast.KindOf(err)], err)
}

// agentPrefix begins the paths of the agents' control plane.
const agentPrefix = "/agent/"

// humaError makes errors that huma itself finds (a body that does not fit its schema) look like all others.
func humaError(code int, msg string, errs ...error) huma.StatusError {
	kind := holdfast.Invalid
	switch {
	case code >= 500:
		kind = holdfast.Internal
	case code == http.StatusNotFound:
		kind = holdfast.NotExist
	}
	for _, err := range errs {
		if err != nil {
			msg += "; " + err.Error()
		}
	}
	return &ErrorBody{Failure: Failure{Code: kind.Code(), Message: msg}, status: code}
}
