// Lines about what a caller hands back: 1 to 7, 45, 46, 21, 42, 39, a.

#include "catalogue.hpp"
#include "planting.hpp"

#include <pmr_debug/pmr_debug.hpp>

#include <array>
#include <memory_resource>

namespace catalogue {

// ---- 1, 2: the heap

static void gives_back_half_the_size(bool planted) {
    pmr_debug::tracking_resource heap(std::pmr::new_delete_resource(), {.name = "heap"});
    void* const p = heap.allocate(64, 8);
    heap.deallocate(p, planted ? 32 : 64, 8);
}

static void gives_back_a_weaker_alignment(bool planted) {
    pmr_debug::tracking_resource heap(std::pmr::new_delete_resource(), {.name = "heap"});
    void* const p = heap.allocate(64, 64);
    heap.deallocate(p, 64, planted ? 8 : 64);
}

// ---- 3, 4: a pool

static void gives_back_another_size_class(bool planted) {
    pmr_debug::general_purpose_resource pool({.name = "pool"});
    void* const p = pool.allocate(64, 8);
    pool.deallocate(p, planted ? 32 : 64, 8);
}

static void gives_back_a_stronger_alignment(bool planted) {
    pmr_debug::general_purpose_resource pool({.name = "pool"});
    void* const p = pool.allocate(64, 64);
    pool.deallocate(p, 64, planted ? 128 : 64);
}

// ---- 5: two pools

CATALOGUE_NOINLINE static void* take_from_pool_a(std::pmr::memory_resource& a) {
    return a.allocate(48, 8);
}

static void gives_a_block_of_a_to_b(bool planted) {
    pmr_debug::general_purpose_resource a({.name = "a"});
    pmr_debug::general_purpose_resource b({.name = "b"});
    void* const p = take_from_pool_a(a);
    if (planted) {
        b.deallocate(p, 48, 8);
    }
    a.deallocate(p, 48, 8);
}

// ---- 6: two owners

CATALOGUE_NOINLINE static void* make_the_block(std::pmr::memory_resource& pool) {
    return pool.allocate(32, 8);
}

CATALOGUE_NOINLINE static void first_owner_frees(std::pmr::memory_resource& pool, void* p) {
    pool.deallocate(p, 32, 8);
    asm volatile("# first owner");
}

CATALOGUE_NOINLINE static void second_owner_frees(std::pmr::memory_resource& pool, void* p) {
    pool.deallocate(p, 32, 8);
    asm volatile("# second owner");
}

static void frees_a_block_twice(bool planted) {
    pmr_debug::general_purpose_resource pool({.name = "pool"});
    void* const p = make_the_block(pool);
    first_owner_frees(pool, p);
    if (planted) {
        second_owner_frees(pool, p);
    }
    // A pool that believed the second call would now hand out one block to two owners.
    void* const one = pool.allocate(32, 8);
    void* const two = pool.allocate(32, 8);
    pool.deallocate(one, 32, 8);
    if (two != one) {
        pool.deallocate(two, 32, 8);
    }
}

// ---- 7: an arena and the heap below it

CATALOGUE_NOINLINE static void* take_from_the_arena(std::pmr::memory_resource& arena) {
    return arena.allocate(40, 8);
}

static void frees_an_arena_block_on_the_heap(bool planted) {
    pmr_debug::tracking_resource heap(std::pmr::new_delete_resource(), {.name = "heap"});
    std::pmr::monotonic_buffer_resource buffer(&heap);
    pmr_debug::tracking_resource arena(&buffer, {.name = "arena"});
    void* const p = take_from_the_arena(arena);
    if (planted) {
        heap.deallocate(p, 40, 8);
    }
    arena.deallocate(p, 40, 8);
}

// ---- 45, 46, 21: pointers that are no blocks

static void frees_from_the_middle(bool planted) {
    pmr_debug::general_purpose_resource pool({.name = "pool"});
    auto* const p = static_cast<std::byte*>(take_from_pool_a(pool));
    pool.deallocate(p + (planted ? 16 : 0), planted ? 32 : 48, 8);
    if (planted) {
        pool.deallocate(p, 48, 8);
    }
}

static void frees_a_stack_array(bool planted) {
    pmr_debug::general_purpose_resource pool({.name = "pool"});
    std::array<std::byte, 64> array{};
    void* p = pool.allocate(64, 8);
    if (planted) {
        pool.deallocate(opaque(array.data()), 64, 8);
    }
    pool.deallocate(p, 64, 8);
}

CATALOGUE_ODD static void frees_null(bool planted) {
    pmr_debug::tracking_resource heap(std::pmr::new_delete_resource(), {.name = "heap"});
    void* volatile p = planted ? nullptr : heap.allocate(8, 8);
    heap.deallocate(p, 8, 8);
}

// ---- 42: a resource with a header

namespace {

// Keeps the size in front of each block, as many home-made resources do.
class header_resource final : public std::pmr::memory_resource {
public:
    header_resource(std::pmr::memory_resource& upstream, bool forgets) : upstream_(upstream), forgets_(forgets) {}

private:
    static constexpr std::size_t header = 16;

    CATALOGUE_NOINLINE void* do_allocate(std::size_t bytes, std::size_t) override {
        return static_cast<std::byte*>(upstream_.allocate(header + bytes, header)) + header;
    }
    CATALOGUE_NOINLINE void do_deallocate(void* p, std::size_t bytes, std::size_t) override {
        upstream_.deallocate(static_cast<std::byte*>(p) - header, forgets_ ? bytes : header + bytes, header);
    }
    bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }

    std::pmr::memory_resource& upstream_;
    bool forgets_;
};

// Asks for the default resource at each call.
class default_forwarder final : public std::pmr::memory_resource {
public:
    explicit default_forwarder(bool asks_each_time) : asks_each_time_(asks_each_time) {}

private:
    [[nodiscard]] std::pmr::memory_resource& target() const {
        return asks_each_time_ ? *std::pmr::get_default_resource() : *first_;
    }
    CATALOGUE_NOINLINE void* do_allocate(std::size_t bytes, std::size_t alignment) override {
        return target().allocate(bytes, alignment);
    }
    CATALOGUE_NOINLINE void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
        target().deallocate(p, bytes, alignment);
    }
    bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }

    bool asks_each_time_;
    std::pmr::memory_resource* first_ = std::pmr::get_default_resource();
};

// The default resource for as long as it lives.
class as_default {
public:
    explicit as_default(std::pmr::memory_resource& r) : before_(std::pmr::set_default_resource(&r)) {}
    ~as_default() { std::pmr::set_default_resource(before_); }
    as_default(const as_default&) = delete;
    as_default& operator=(const as_default&) = delete;

private:
    std::pmr::memory_resource* before_;
};

}  // namespace

static void frees_upstream_without_the_header(bool planted) {
    pmr_debug::tracking_resource heap(std::pmr::new_delete_resource(), {.name = "heap"});
    header_resource with_header(heap, planted);
    void* const p = with_header.allocate(100, 8);
    with_header.deallocate(p, 100, 8);
}

// ---- 39: the default changes in between

static void frees_into_another_default(bool planted) {
    pmr_debug::general_purpose_resource before({.name = "before"});
    pmr_debug::general_purpose_resource after({.name = "after"});
    const as_default first(before);
    default_forwarder forwarder(planted);
    void* const p = forwarder.allocate(24, 8);
    {
        const as_default second(after);
        forwarder.deallocate(p, 24, 8);
    }
}

// ---- a: what new_object and allocate were told

namespace {

struct shape {
    virtual ~shape() = default;
};
struct circle : shape {
    double x = 0, y = 0, radius = 1;
};

}  // namespace

static void deletes_a_circle_as_a_shape(bool planted) {
    pmr_debug::general_purpose_resource heap({.name = "heap"});
    std::pmr::polymorphic_allocator<> memory(&heap);
    circle* const c = memory.new_object<circle>();
    if (planted) {
        shape* const s = c;
        memory.delete_object(s);
    } else {
        memory.delete_object(c);
    }
}

static void deallocates_fewer_elements(bool planted) {
    pmr_debug::general_purpose_resource heap({.name = "heap"});
    std::pmr::polymorphic_allocator<int> memory(&heap);
    int* const p = memory.allocate(100);
    memory.deallocate(p, planted ? 60 : 100);
}

std::vector<bug> deallocation_bugs() {
    using enum pmr_debug::error_kind;
    return {
        {.line = "1",
         .name = "half_the_size",
         .found_by = "tracking",
         .run = gives_back_half_the_size,
         .findings = {{.kind = size_mismatch,
                       .resource = "heap",
                       .here = "gives_back_half_the_size",
                       .allocated = "gives_back_half_the_size",
                       .size = 64,
                       .given_size = 32}}},
        {.line = "2",
         .name = "weaker_alignment",
         .found_by = "tracking",
         .run = gives_back_a_weaker_alignment,
         .findings = {{.kind = alignment_mismatch,
                       .resource = "heap",
                       .here = "gives_back_a_weaker_alignment",
                       .allocated = "gives_back_a_weaker_alignment",
                       .alignment = 64,
                       .given_alignment = 8}}},
        {.line = "3",
         .name = "another_size_class",
         .found_by = "general_purpose",
         .run = gives_back_another_size_class,
         .findings = {{.kind = size_mismatch,
                       .resource = "pool",
                       .here = "gives_back_another_size_class",
                       .allocated = "gives_back_another_size_class",
                       .size = 64,
                       .given_size = 32}}},
        {.line = "4",
         .name = "stronger_alignment",
         .found_by = "general_purpose",
         .run = gives_back_a_stronger_alignment,
         .findings = {{.kind = alignment_mismatch,
                       .resource = "pool",
                       .here = "gives_back_a_stronger_alignment",
                       .allocated = "gives_back_a_stronger_alignment",
                       .alignment = 64,
                       .given_alignment = 128}}},
        {.line = "5",
         .name = "pool_a_to_pool_b",
         .found_by = "general_purpose",
         .run = gives_a_block_of_a_to_b,
         .findings = {{.kind = wrong_resource,
                       .resource = "b",
                       .owner = "a",
                       .here = "gives_a_block_of_a_to_b",
                       .allocated = "take_from_pool_a",
                       .size = 48}}},
        {.line = "6",
         .name = "freed_twice",
         .found_by = "general_purpose",
         .run = frees_a_block_twice,
         .findings = {{.kind = double_free,
                       .resource = "pool",
                       .here = "second_owner_frees",
                       .allocated = "make_the_block",
                       .freed = "first_owner_frees",
                       .size = 32}}},
        {.line = "7",
         .name = "arena_block_to_heap",
         .found_by = "tracking over a monotonic_buffer_resource, and below",
         .run = frees_an_arena_block_on_the_heap,
         .findings = {{.kind = wrong_resource,
                       .resource = "heap",
                       .owner = "arena",
                       .here = "frees_an_arena_block_on_the_heap",
                       .allocated = "take_from_the_arena",
                       .size = 40}}},
        {.line = "45",
         .name = "interior_pointer",
         .found_by = "general_purpose",
         .run = frees_from_the_middle,
         .findings = {{.kind = interior_free,
                       .resource = "pool",
                       .here = "frees_from_the_middle",
                       .allocated = "take_from_pool_a",
                       .size = 48,
                       .offset = 16,
                       .text = "16 bytes into the 48-byte block"}}},
        {.line = "46",
         .name = "stack_array",
         .found_by = "general_purpose",
         .run = frees_a_stack_array,
         .findings = {{.kind = invalid_free,
                       .resource = "pool",
                       .here = "frees_a_stack_array",
                       .given_size = 64,
                       .text = "is no block of any pmr_debug resource"}}},
        {.line = "21",
         .name = "null_free",
         .found_by = "tracking",
         .run = frees_null,
         .findings = {{.kind = null_free, .resource = "heap", .here = "frees_null", .given_size = 8}}},
        {.line = "42",
         .name = "forgotten_header",
         .found_by = "tracking as the upstream",
         .run = frees_upstream_without_the_header,
         .findings = {{.kind = size_mismatch,
                       .resource = "heap",
                       .here = "header_resource::do_deallocate",
                       .allocated = "header_resource::do_allocate",
                       .size = 116,
                       .given_size = 100}}},
        {.line = "39",
         .name = "changed_default",
         .found_by = "general_purpose as the default resources",
         .run = frees_into_another_default,
         .findings =
             {{.kind = wrong_resource,
               .resource = "after",
               .owner = "before",
               .here = "default_forwarder::do_deallocate",
               .allocated = "default_forwarder::do_allocate",
               .size = 24},
              {.kind = leak, .resource = "before", .allocated = "default_forwarder::do_allocate", .blocks = 1}}},
        {.line = "a",
         .name = "delete_as_base",
         .found_by = "general_purpose",
         .run = deletes_a_circle_as_a_shape,
         .findings = {{.kind = size_mismatch,
                       .resource = "heap",
                       .here = "deletes_a_circle_as_a_shape",
                       .allocated = "deletes_a_circle_as_a_shape",
                       .size = sizeof(circle),
                       .given_size = sizeof(shape)}}},
        {.line = "a",
         .name = "fewer_elements",
         .found_by = "general_purpose",
         .run = deallocates_fewer_elements,
         .findings = {{.kind = size_mismatch,
                       .resource = "heap",
                       .here = "deallocates_fewer_elements",
                       .allocated = "deallocates_fewer_elements",
                       .size = 100 * sizeof(int),
                       .given_size = 60 * sizeof(int)}}},
    };
}

}  // namespace catalogue
