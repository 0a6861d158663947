// The peer that Tidegate is measured beside: go-control-plane's LinearCache behind its own server, delta ADS.
//
// It serves as many assignments, of the same shape and size, as the bench gives Tidegate. Over a control connection it is
// told what to change, one line each: `one CLUSTER PORT` moves the first endpoint of one cluster, `all PORT` that of every
// cluster. It says nothing back: that a change is there, the simulated proxies see.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net"
	"os"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

var (
	clusters  = flag.Int("clusters", 20, "how many assignments")
	endpoints = flag.Int("endpoints", 20, "how many endpoints each has")
	region    = flag.String("region", "", "the region of all endpoints")
	zone      = flag.String("zone", "", "the zone of all endpoints")
	addresses = flag.String("addresses-file", "", "where to write the addresses, once it listens")
)

// The port of every endpoint that does not move.
const port = 8080

func name(cluster int) string {
	return fmt.Sprintf("service-%05d/%s", cluster, *zone)
}

// An assignment, built as Tidegate builds it; the first endpoint has the port `moved`.
func assignment(cluster int, moved uint32) *endpoint.ClusterLoadAssignment {
	locality := &endpoint.LocalityLbEndpoints{
		Locality:            &core.Locality{Region: *region, Zone: *zone},
		LoadBalancingWeight: wrapperspb.UInt32(1),
	}
	for i := range *endpoints {
		at := uint32(port)
		if i == 0 {
			at = moved
		}
		socket := &core.SocketAddress{
			Address:       fmt.Sprintf("10.%d.%d.%d", cluster%250, i/250, i%250),
			PortSpecifier: &core.SocketAddress_PortValue{PortValue: at},
		}
		locality.LbEndpoints = append(locality.LbEndpoints, &endpoint.LbEndpoint{
			HealthStatus:        core.HealthStatus_HEALTHY,
			LoadBalancingWeight: wrapperspb.UInt32(1),
			HostIdentifier: &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{
				Address: &core.Address{Address: &core.Address_SocketAddress{SocketAddress: socket}},
			}},
		})
	}
	return &endpoint.ClusterLoadAssignment{
		ClusterName: name(cluster),
		Endpoints:   []*endpoint.LocalityLbEndpoints{locality},
		Policy: &endpoint.ClusterLoadAssignment_Policy{
			OverprovisioningFactor: wrapperspb.UInt32(140),
		},
	}
}

func all(moved uint32) map[string]types.Resource {
	resources := make(map[string]types.Resource, *clusters)
	for cluster := range *clusters {
		resources[name(cluster)] = assignment(cluster, moved)
	}
	return resources
}

// Obeys whoever connects, one after another.
func obey(control net.Listener, linear *cache.LinearCache) error {
	for {
		connection, err := control.Accept()
		if err != nil {
			return err
		}
		lines := bufio.NewScanner(connection)
		for lines.Scan() {
			if err := change(linear, lines.Text()); err != nil {
				return fmt.Errorf("%q: %w", lines.Text(), err)
			}
		}
		connection.Close()
	}
}

func change(linear *cache.LinearCache, line string) error {
	var cluster int
	var moved uint32
	if _, err := fmt.Sscanf(line, "one %d %d", &cluster, &moved); err == nil {
		return linear.UpdateResource(name(cluster), assignment(cluster, moved))
	}
	if _, err := fmt.Sscanf(line, "all %d", &moved); err != nil {
		return err
	}
	return linear.UpdateResources(all(moved), nil)
}

func listen() net.Listener {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	return listener
}

// Written beside and renamed: a reader sees all of it or nothing.
func announce(xds, control net.Listener) error {
	text, err := json.Marshal(map[string]string{
		"xds":     xds.Addr().String(),
		"control": control.Addr().String(),
	})
	if err != nil {
		return err
	}
	fresh := *addresses + ".new"
	if err := os.WriteFile(fresh, text, 0o644); err != nil {
		return err
	}
	return os.Rename(fresh, *addresses)
}

func main() {
	flag.Parse()
	linear := cache.NewLinearCache(resource.EndpointType, cache.WithInitialResources(all(port)))
	xds, control := listen(), listen()
	ads := grpc.NewServer()
	discovery.RegisterAggregatedDiscoveryServiceServer(ads, server.NewServer(context.Background(), linear, nil))
	go func() { log.Fatal(obey(control, linear)) }()
	if err := announce(xds, control); err != nil {
		log.Fatal(err)
	}
	log.Fatal(ads.Serve(xds))
}
