package library

import (
	"context"
	"maps"
	"sync"
)

// A Keeper opens each library once for all of its users in a process: pools and whoever looks after the devices share one robot and
// one book of who has which drive. Methods are safe for concurrent use.
type Keeper struct {
	schemes map[string]Opener

	mu   sync.Mutex // guards the map
	kept map[string]*kept
}

// kept is a library that is or was open.
type kept struct {
	mu    sync.Mutex // held while the library is opened or closed: who comes meanwhile waits for the outcome; guards what follows
	lib   *Library   // nil: nobody uses it
	users int
}

// NewKeeper returns a keeper that knows the product's schemes and further ones, by name.
func NewKeeper(more map[string]Opener) *Keeper {
	k := &Keeper{schemes: openers(), kept: map[string]*kept{}}
	maps.Copy(k.schemes, more)
	return k
}

// Find lists the devices behind an address: changers, drives and whatever else is there. The caller closes what it returns.
func (k *Keeper) Find(ctx context.Context, address string, o Options) (Units, error) {
	a, err := Parse(address)
	if err != nil {
		return Units{}, err
	}
	do, ok := k.schemes[a.Scheme]
	if !ok {
		return Units{}, badAddress("there is no scheme %q", a.Scheme)
	}
	if o.Initiator == "" {
		o.Initiator = DefaultInitiator
	}
	return do(ctx, a, o)
}

func (k *Keeper) open(ctx context.Context, address string, o Options) (*Library, error) {
	u, err := k.Find(ctx, address, o)
	if err != nil {
		return nil, err
	}
	return New(ctx, u, o)
}

// Use returns the library at an address, opening it if nobody has, and a function to give it back. The options of who comes first are the
// library's. The last to give it back closes it.
func (k *Keeper) Use(ctx context.Context, address string, o Options) (*Library, func(context.Context) error, error) {
	a, err := Parse(address)
	if err != nil {
		return nil, nil, err
	}
	k.mu.Lock()
	e := k.kept[a.Key()]
	if e == nil {
		e = &kept{}
		k.kept[a.Key()] = e
	}
	k.mu.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.lib == nil {
		if e.lib, err = k.open(ctx, address, o); err != nil {
			e.lib = nil
			return nil, nil, err
		}
	}
	e.users++
	var once sync.Once
	return e.lib, func(ctx context.Context) (err error) {
		once.Do(func() { err = e.back(ctx) })
		return err
	}, nil
}

func (e *kept) back(ctx context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.users--; e.users > 0 {
		return nil
	}
	lib := e.lib
	e.lib = nil
	return lib.Close(ctx)
}
