package api

import (
	"context"
	"time"
)

// Networks is what the appliance knows of networks, and what hosts have been told of them.
type Networks interface {
	// Networks lists named networks, and the addresses of the appliance and of the hosts.
	Networks(ctx context.Context) (NetworkList, error)
	CreateNetwork(ctx context.Context, n Network) (Network, error)
	// DeleteNetwork is refused while a host or a job uses it.
	DeleteNetwork(ctx context.Context, name string) (Network, error)
	// Host returns a host with its addresses.
	Host(ctx context.Context, name string) (Host, error)
	// SetHost changes a host's label and the way its data goes; tasks that are at work already go on as they are.
	SetHost(ctx context.Context, name string, c HostChange) (Host, error)
}

type (
	// Network is a network with a name.
	Network struct {
		Name string `json:"name" minLength:"1" maxLength:"64"`
		CIDR string `json:"cidr" doc:"like 192.0.2.0/24 or 2001:db8::/64"`
	}

	// NetworkList is who has which addresses.
	NetworkList struct {
		Networks  []Network      `json:"networks" doc:"with names"`
		Appliance []NetAddress   `json:"appliance" doc:"addresses of the appliance at which agents can reach it"`
		Hosts     []HostNetworks `json:"hosts"`
	}

	// HostNetworks is a host's addresses, as its agent last said since the appliance was started.
	HostNetworks struct {
		Host        string       `json:"host"`
		State       string       `json:"state" doc:"online or offline"`
		DataNetwork string       `json:"data_network,omitempty"`
		Egress      string       `json:"egress,omitempty"`
		Addresses   []NetAddress `json:"addresses"`
	}

	// NetAddress is an address with the interface that has it.
	NetAddress struct {
		Interface string `json:"interface"`
		Address   string `json:"address" doc:"with the length of its prefix"`
		Network   string `json:"network,omitempty" doc:"the named network it is in"`
	}

	// DataPath is between which addresses a data connection was made.
	DataPath struct {
		Time time.Time `json:"time"`
		From string    `json:"from" doc:"the host's end, as the appliance sees it"`
		To   string    `json:"to" doc:"the appliance's end"`
	}

	// HostChange changes a host; what is left out stays.
	HostChange struct {
		Protected   *bool   `json:"protected,omitempty" doc:"true: never the target of a restore until an administrator takes it off"`
		DataNetwork *string `json:"data_network,omitempty" maxLength:"64" doc:"name or CIDR; empty: none"`
		Egress      *string `json:"egress,omitempty" maxLength:"64" doc:"IPv4 or IPv6 address of the host; empty: none"`
	}
)

type hostIn struct {
	Name string `path:"name" doc:"name or id"`
	Body HostChange
}

func (a *API) registerNetworks() {
	s := a.o.Service
	route(a, "GET", "/v1/networks", "List networks, and who has which addresses", 200, func(ctx context.Context, _ *none) (NetworkList, error) { return s.Networks(ctx) })
	route(a, "POST", "/v1/networks", "Name a network", 201, func(ctx context.Context, in *bodyOfType[Network]) (Network, error) {
		return s.CreateNetwork(ctx, in.Body)
	})
	route(a, "DELETE", "/v1/networks/{name}", "Forget a network's name", 200, func(ctx context.Context, in *byName) (Network, error) {
		return s.DeleteNetwork(ctx, in.Name)
	})
	route(a, "GET", "/v1/hosts/{name}", "Show a host", 200, func(ctx context.Context, in *byName) (Host, error) { return s.Host(ctx, in.Name) })
	route(a, "PATCH", "/v1/hosts/{name}", "Change a host's label, or the way its data goes", 200, func(ctx context.Context, in *hostIn) (Host, error) {
		return s.SetHost(ctx, in.Name, in.Body)
	})
}
