#include "resources/upstream.hpp"

namespace pmr_debug::detail {

// do_allocate promises nothing, but is private. Access is not checked for the arguments of an explicit instantiation,
// whose friend function hands the pointer to member out.
struct upstream_call {
    friend auto private_allocate(upstream_call);
};

template <auto Member>
struct upstream_access {
    friend auto private_allocate(upstream_call) { return Member; }
};

template struct upstream_access<&std::pmr::memory_resource::do_allocate>;

void* ask_upstream(std::pmr::memory_resource& upstream, std::size_t bytes, std::size_t alignment) {
    return (upstream.*private_allocate(upstream_call{}))(bytes, alignment);
}

}  // namespace pmr_debug::detail
