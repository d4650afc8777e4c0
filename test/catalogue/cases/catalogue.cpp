#include "catalogue.hpp"

#include <algorithm>
#include <array>
#include <utility>

namespace catalogue {

namespace {

constexpr const char* deallocation = "Deallocation contract";
constexpr const char* request = "Allocation request, broken resource underneath";
constexpr const char* lifetime = "Lifetime";
constexpr const char* arena = "Arena, monotonic, temp";
constexpr const char* placement = "Allocated in the wrong place";
constexpr const char* safety = "Memory safety inside pooled memory, threads, exceptions";

constexpr std::array all_lines{
    line{"1", deallocation, "`new_delete_resource`: allocate 64, deallocate 32", 'x', ' ', ' '},
    line{"2", deallocation, "same, alignment 64 given back as 8", 'x', ' ', ' '},
    line{"3", deallocation, "pool: allocate 64, deallocate 32 (another size class)", ' ', ' ', ' '},
    line{"4", deallocation, "pool: alignment 64 against 128", ' ', ' ', ' '},
    line{"5", deallocation, "block of pool a given to pool b", ' ', ' ', ' '},
    line{"6", deallocation, "pool: same block freed twice, then two owners of one block", ' ', ' ', ' '},
    line{"7", deallocation, "monotonic block freed through `new_delete_resource`", 'x', 'x', ' '},
    line{"45", deallocation, "interior pointer: `deallocate(p+16, 48)`", ' ', ' ', ' '},
    line{"46", deallocation, "a stack array given to a pool", ' ', ' ', ' '},
    line{"21", deallocation, "`deallocate(nullptr, 8)`", 'x', ' ', ' '},
    line{"42", deallocation, "a resource that frees upstream with n instead of n + its header", ' ', ' ', ' '},
    line{"39", deallocation, "a resource that calls `get_default_resource()` in both calls while the default changes",
         ' ', ' ', ' '},
    line{"a", deallocation,
         "`new_object<Derived>` / `delete_object<Base>`; `allocate(n)` / `deallocate(p, m)`; free after `release()`",
         ' ', ' ', ' '},

    line{"22", request, "alignment 3", ' ', ' ', ' '},
    line{"31", request, "`polymorphic_allocator(nullptr)` / null upstream", '!', '!', ' '},
    line{"23", request, "upstream returns the same block twice", ' ', ' ', ' '},
    line{"24", request, "upstream returns under-aligned memory", 'x', ' ', ' '},
    line{"b", request, "upstream returns null (clang -O2 deletes the caller's test)", 'x', ' ', ' '},
    line{"25", request, "`do_is_equal` true for distinct state: move assignment steals across pools", ' ', ' ', ' '},
    line{"41", request, "copyable resource: two owners of one buffer", 'x', 'x', '!'},
    line{"c", request, "size sums up to SIZE_MAX; two zero-size blocks at one address; chain cycle a → b → a", ' ', ' ',
         ' '},

    line{"8", lifetime, "`struct { pmr::vector v; monotonic r; }`: r dies first", ' ', ' ', ' '},
    line{"9", lifetime, "same with a pool: the vector calls into a dead pool", ' ', ' ', ' '},
    line{"26", lifetime, "`set_default_resource(&local)` not restored", 'x', '!', ' '},
    line{"27", lifetime, "function returns a `pmr::string` on its local arena", ' ', 'x', ' '},
    line{"28", lifetime, "container outlives the optional that holds its arena", 'x', 'x', ' '},
    line{"33", lifetime, "use after `release()` of an arena", 'x', 'x', ' '},
    line{"34", lifetime, "use after `release()` of a pool", 'x', 'x', ' '},
    line{"10", lifetime, "use after `release()` when the arena is a stack buffer", ' ', ' ', ' '},
    line{"35", lifetime, "stale pointer after vector growth inside an arena", ' ', ' ', ' '},

    line{"16", arena, "a 64-byte buffer silently overflows to the heap", ' ', ' ', ' '},
    line{"17", arena, "assigning in a loop on one arena: unbounded growth", ' ', ' ', ' '},
    line{"40", arena, "two arenas on one buffer", ' ', ' ', ' '},
    line{"19", arena, "winking out an object that owns heap memory", 'x', 'x', ' '},
    line{"32", arena, "winking out a container of such objects", 'x', 'x', ' '},
    line{"20", arena, "leak inside a pool, hidden by its destructor", ' ', ' ', ' '},
    line{"29", arena, "a block allocated by one thread from another's arena, then rewound", 'x', 'x', ' '},
    line{"d", arena, "freed out of LIFO order; rewind to another arena's mark, or twice; under-aligned initial buffer",
         ' ', ' ', ' '},

    line{"14", placement, "element `struct { std::string; pmr::string; }` is not uses-allocator", ' ', ' ', ' '},
    line{"15", placement, "copy constructor falls back to the default resource", ' ', ' ', ' '},
    line{"38", placement, "`auto t = s + \"x\"` on an arena string", ' ', ' ', ' '},
    line{"43", placement, "`v.push_back(\"literal…\")` builds a temporary on the default heap", ' ', ' ', ' '},
    line{"44", placement, "`keep = std::move(tmp)` across resources copies silently", ' ', ' ', ' '},
    line{"18", placement, "`swap` of containers on unequal resources", ' ', ' ', 'x'},
    line{"36", placement, "`list::splice` across resources", '!', '!', '!'},
    line{"37", placement, "node handle inserted into a container on another resource", ' ', ' ', '!'},

    line{"11", safety, "use after free in a pool", ' ', ' ', ' '},
    line{"12", safety, "off by one into the neighbour, arena", ' ', ' ', ' '},
    line{"13", safety, "off by one into the neighbour, pool", ' ', ' ', ' '},
    line{"30", safety, "an unsynchronised pool in two threads", ' ', ' ', ' '},
    line{"e", safety, "leak on throw, broken strong guarantee, swallowed bad_alloc, endless retry", ' ', ' ', ' '},
};

std::string noted;

std::vector<bug> collect() {
    std::vector<bug> all;
    for (const auto list : {deallocation_bugs, request_bugs, lifetime_bugs, release_bugs, arena_bugs, mark_bugs,
                            default_bugs, placement_bugs, safety_bugs, exception_bugs}) {
        for (bug& b : list()) {
            all.push_back(std::move(b));
        }
    }
    return all;
}

}  // namespace

void note(std::string_view what) {
    noted.append(what);
}

std::string take_notes() {
    return std::exchange(noted, {});
}

std::span<const line> lines() {
    return all_lines;
}

const std::vector<bug>& bugs() {
    static const std::vector<bug> all = collect();
    return all;
}

std::vector<const bug*> bugs_of(std::string_view line_id) {
    std::vector<const bug*> found;
    for (const bug& b : bugs()) {
        if (b.line == line_id) {
            found.push_back(&b);
        }
    }
    return found;
}

}  // namespace catalogue
