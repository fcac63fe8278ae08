package blob

import (
	"cmp"
	"context"
	"path"
	"slices"
	"sync"
)

// A FaultRule says which requests go wrong, and how. With Err they fail; the other fields change an answer.
type FaultRule struct {
	Verb  Verb
	Glob  string // path.Match on the object's name, or on its last part if Glob has no slash; "" matches all
	Nth   int    // the how manyth match is the first that goes wrong, from 1; 0 means 1
	Times int    // how many from there on; 0 means 1, -1 all

	Err    error // what is returned
	Done   bool  // with Err: the request is carried out, and only its answer is lost
	Flip   bool  // VerbRead: one bit of what was read is flipped
	Hidden bool  // VerbList: names that match Glob are left out, as in a listing that is behind
}

// A Fault is a Store that passes everything to another one but for what it was told to spoil. Safe for concurrent use.
type Fault struct {
	Store
	mu    sync.Mutex
	rules []*faultRule
}

type faultRule struct {
	FaultRule
	matched, hit int
}

// NewFault returns a Fault that spoils nothing yet.
func NewFault(s Store) *Fault { return &Fault{Store: s} }

// Inject adds a rule. The function that it returns tells how often the rule has struck so far.
func (f *Fault) Inject(r FaultRule) (struck func() int) {
	r.Nth, r.Times = max(r.Nth, 1), cmp.Or(r.Times, 1)
	f.mu.Lock()
	defer f.mu.Unlock()
	rule := &faultRule{FaultRule: r}
	f.rules = append(f.rules, rule)
	return func() int {
		f.mu.Lock()
		defer f.mu.Unlock()
		return rule.hit
	}
}

// Clear takes all rules away.
func (f *Fault) Clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = nil
}

// strike returns the rule that a request meets, or nil.
func (f *Fault) strike(v Verb, name string) *faultRule {
	f.mu.Lock()
	defer f.mu.Unlock()
	var first *faultRule
	for _, r := range f.rules {
		if r.Verb != v || v != VerbList && !r.names(name) {
			continue
		}
		r.matched++
		if over := r.matched - r.Nth; first == nil && over >= 0 && (r.Times < 0 || over < r.Times) {
			r.hit++
			first = r
		}
	}
	return first
}

func (r *faultRule) names(name string) bool {
	if r.Glob == "" {
		return true
	}
	if path.Base(r.Glob) == r.Glob {
		name = path.Base(name)
	}
	ok, err := path.Match(r.Glob, name)
	return ok && err == nil
}

// around does a request unless a rule forbids it.
func (f *Fault) around(v Verb, name string, do func() error) error {
	r := f.strike(v, name)
	if r == nil || r.Err == nil {
		return do()
	}
	if r.Done {
		if err := do(); err != nil {
			return err
		}
	}
	return r.Err
}

// Create implements Store.
func (f *Fault) Create(ctx context.Context, name string) (o Object, err error) {
	err = f.around(VerbCreate, name, func() (err error) {
		o, err = f.Store.Create(ctx, name)
		return err
	})
	if err != nil {
		if o != nil {
			o.Abort()
		}
		return nil, err
	}
	return &faultObject{o, f, name}, nil
}

// Open implements Store.
func (f *Fault) Open(ctx context.Context, name string) (r Reader, err error) {
	err = f.around(VerbOpen, name, func() (err error) {
		r, err = f.Store.Open(ctx, name)
		return err
	})
	if err != nil {
		if r != nil {
			_ = r.Close()
		}
		return nil, err
	}
	return &faultReader{r, f, name}, nil
}

// List implements Store.
func (f *Fault) List(ctx context.Context, folder string) ([]string, error) {
	r := f.strike(VerbList, folder)
	if r != nil && r.Err != nil {
		return nil, r.Err
	}
	names, err := f.Store.List(ctx, folder)
	if err == nil && r != nil && r.Hidden {
		names = slices.DeleteFunc(names, r.names)
	}
	return names, err
}

// Exists implements Store.
func (f *Fault) Exists(ctx context.Context, name string) (is bool, err error) {
	err = f.around(VerbExists, name, func() (err error) {
		is, err = f.Store.Exists(ctx, name)
		return err
	})
	return is && err == nil, err
}

// Remove implements Store.
func (f *Fault) Remove(ctx context.Context, name string) error {
	return f.around(VerbRemove, name, func() error { return f.Store.Remove(ctx, name) })
}

// Usage implements Store.
func (f *Fault) Usage(ctx context.Context) (free, size int64, err error) {
	err = f.around(VerbUsage, "", func() (err error) {
		free, size, err = f.Store.Usage(ctx)
		return err
	})
	return free, size, err
}

type faultObject struct {
	Object
	f    *Fault
	name string
}

func (o *faultObject) Write(p []byte) (n int, err error) {
	err = o.f.around(VerbWrite, o.name, func() (err error) {
		n, err = o.Object.Write(p)
		return err
	})
	return n, err
}

func (o *faultObject) Commit() error {
	done := false
	err := o.f.around(VerbCommit, o.name, func() error {
		done = true
		return o.Object.Commit()
	})
	if !done {
		o.Object.Abort() // Commit ends an object also when it fails
	}
	return err
}

type faultReader struct {
	Reader
	f    *Fault
	name string
}

func (r *faultReader) ReadAt(p []byte, off int64) (int, error) {
	rule := r.f.strike(VerbRead, r.name)
	if rule != nil && rule.Err != nil {
		return 0, rule.Err
	}
	n, err := r.Reader.ReadAt(p, off)
	if rule != nil && rule.Flip && n > 0 {
		p[n/2] ^= 1 << (n % 8)
	}
	return n, err
}
