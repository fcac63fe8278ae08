package api

import (
	"net/http"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

// requests counts what is asked of the API, by route: the pattern, never the path, so that no name or id makes a series.
type requests struct {
	count *prometheus.CounterVec
	took  *prometheus.HistogramVec
}

// unknownRoute stands for requests that no route is for.
const unknownRoute = "(none)"

// streams are routes whose answers last as long as somebody listens: how long says nothing.
var streams = map[string]bool{"GET /agent/v1/tasks": true, "GET /v1/events": true}

func newRequests() requests {
	return requests{
		count: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "holdfast_http_requests_total", Help: "Requests that were answered."}, []string{"door", "route", "code"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "holdfast_http_request_duration_seconds", Help: "How long requests took to answer; streams are left out.",
			Buckets: []float64{0.005, 0.02, 0.1, 0.5, 2, 10, 60}}, []string{"door", "route"}),
	}
}

// counted counts the requests that h answers at a door.
func (a *API) counted(door string, mux *http.ServeMux, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, route := mux.Handler(r)
		if route == "" {
			route = unknownRoute
		}
		began := a.o.Clock.Now()
		s := &statusWriter{ResponseWriter: w, code: http.StatusOK}
		defer func() {
			a.requests.count.WithLabelValues(door, route, strconv.Itoa(s.code)).Inc()
			if !streams[route] {
				a.requests.took.WithLabelValues(door, route).Observe(a.o.Clock.Now().Sub(began).Seconds())
			}
		}()
		h.ServeHTTP(s, r)
	})
}

// A statusWriter remembers the status of an answer.
type statusWriter struct {
	http.ResponseWriter
	code  int
	begun bool
}

func (w *statusWriter) WriteHeader(code int) {
	if !w.begun && code >= http.StatusOK { // what is below is not the answer yet
		w.code, w.begun = code, true
	}
	w.ResponseWriter.WriteHeader(code)
}

func (w *statusWriter) Write(b []byte) (int, error) {
	w.begun = true
	return w.ResponseWriter.Write(b)
}

// Flush lets streams flush that ask the writer itself.
func (w *statusWriter) Flush() {
	w.begun = true
	if f, ok := w.ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
}

// Unwrap is for http.ResponseController.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
