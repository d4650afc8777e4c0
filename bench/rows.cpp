#include "rows.hpp"

#include <pmr_debug/canary_resource.hpp>
#include <pmr_debug/end_of_page_resource.hpp>
#include <pmr_debug/failing_resource.hpp>
#include <pmr_debug/general_purpose_resource.hpp>
#include <pmr_debug/immortal_proxy.hpp>
#include <pmr_debug/limit_resource.hpp>
#include <pmr_debug/logging_resource.hpp>
#include <pmr_debug/page_resource.hpp>
#include <pmr_debug/temp_resource.hpp>
#include <pmr_debug/testing/default_resource_guard.hpp>

#if PMR_DEBUG_BENCH_TRACKING
#include <pmr_debug/tracking_resource.hpp>
#endif

#include <array>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <optional>
#include <string_view>

namespace bench {
namespace {

class malloc_resource final : public std::pmr::memory_resource {
    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
        void* const p = alignment <= alignof(std::max_align_t)
                            ? std::malloc(bytes)
                            : std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
        if (p == nullptr) {
            throw std::bad_alloc();
        }
        return p;
    }
    void do_deallocate(void* p, std::size_t, std::size_t) override { std::free(p); }
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
        return this == &other;
    }
};

using pmr_debug::policy;
using pmr_debug::threading;

constexpr policy traces{.guard_bytes = 0, .fill = false};
constexpr policy traces_canary{.fill = false};
constexpr policy canary_only{.alloc_frames = 0, .free_frames = 0};
constexpr policy canary_at_once{.alloc_frames = 0, .free_frames = 0, .freed = pmr_debug::reuse::immediate};
constexpr policy default_unchecked{.threads = threading::unchecked};
constexpr policy default_single_checked{.threads = threading::single_checked};

constexpr policy trap_at_once{.dead = pmr_debug::dead_unit::trap_at_once};

constexpr policy page_again{.freed = pmr_debug::reuse::quarantined};

constexpr policy temp_release{.threads = threading::unchecked,
                              .alloc_frames = 0,
                              .free_frames = 0,
                              .checks = false,
                              .guard_bytes = 0,
                              .fill = false,
                              .freed = pmr_debug::reuse::immediate};
constexpr policy temp_fast{
    .threads = threading::single_checked, .alloc_frames = 0, .free_frames = 0, .guard_bytes = 0, .fill = false};

template <policy P>
void with_general_purpose(resource_user use, void* context) {
    pmr_debug::page_resource pages;
    pmr_debug::basic_general_purpose_resource<P> resource(&pages);
    use(resource, context);
}

template <policy P>
void with_canary(resource_user use, void* context) {
    malloc_resource heap;
    pmr_debug::basic_canary_resource<P> resource(&heap);
    use(resource, context);
}

void with_long_quarantine(resource_user use, void* context) {
    malloc_resource heap;
    pmr_debug::canary_resource resource(&heap, {.quarantine_blocks = 0});
    use(resource, context);
}

void with_limit(resource_user use, void* context) {
    malloc_resource heap;
    pmr_debug::limit_resource resource(&heap, {.limit_bytes = SIZE_MAX / 2});
    use(resource, context);
}

// A plan that never comes true.
void with_failing(resource_user use, void* context) {
    malloc_resource heap;
    pmr_debug::failing_resource resource(&heap, {.plan = {.fail_from = UINT64_MAX}});
    use(resource, context);
}

// What the lines cost, not where they go.
void with_logging(resource_user use, void* context) {
    malloc_resource heap;
    pmr_debug::logging_resource resource(&heap, {.sink = [](std::string_view, void*) noexcept {}});
    use(resource, context);
}

template <unsigned Frames>
void with_proxy(resource_user use, void* context) {
    malloc_resource heap;
    const pmr_debug::immortal_proxy proxy(&heap, {.frames = Frames});
    use(*proxy.resource(), context);
}

// The default resource in a scope that counts uses, with traces; and after it, as somebody who kept it would use it.
template <bool InScope>
void with_forbidden(resource_user use, void* context) {
    using namespace pmr_debug::testing;
    malloc_resource heap;
    const default_resource_guard as_default(&heap);
    std::optional<forbid_default_resource> nobody(on_default_use::count);
    std::pmr::memory_resource* const kept = std::pmr::get_default_resource();
    if constexpr (!InScope) {
        nobody.reset();
    }
    use(*kept, context);
}

template <class Resource>
void with_plain(resource_user use, void* context) {
    Resource resource;
    use(resource, context);
}

#if PMR_DEBUG_BENCH_TRACKING
template <policy P>
void with_tracking(resource_user use, void* context) {
    malloc_resource heap;
    pmr_debug::basic_tracking_resource<P> resource(&heap);
    use(resource, context);
}
#endif

constexpr std::array all_rows {
    row{base_row, with_plain<malloc_resource>},
        row{"new_delete_resource",
            [](resource_user use, void* context) { use(*std::pmr::new_delete_resource(), context); }},
        row{"unsynchronized_pool", with_plain<std::pmr::unsynchronized_pool_resource>, false},
        row{"synchronized_pool", with_plain<std::pmr::synchronized_pool_resource>},
        row{"monotonic_buffer", with_plain<std::pmr::monotonic_buffer_resource>, false, false},
        row{"temp release", with_plain<pmr_debug::temp_resource<0, temp_release>>, false, false},
        row{"temp fast", with_plain<pmr_debug::temp_resource<0, temp_fast>>, false, false},
        row{"temp default", with_plain<pmr_debug::temp_resource<>>, false, false},
        row{"release", with_general_purpose<pmr_debug::release_policy>},
        row{"fast", with_general_purpose<pmr_debug::fast_policy>}, row{traced_row, with_general_purpose<traces>},
        row{"traces+canary", with_general_purpose<traces_canary>},
        row{"default", with_general_purpose<pmr_debug::default_policy>},
        row{"default unchecked", with_general_purpose<default_unchecked>, false},
        row{"default single_checked", with_general_purpose<default_single_checked>, false},
        row{"thorough", with_general_purpose<pmr_debug::thorough_policy>, true, true, true},
        row{"end_of_page", with_plain<pmr_debug::end_of_page_resource>, false, true, false, true},
        row{"end_of_page fast",
            with_plain<pmr_debug::basic_end_of_page_resource<pmr_debug::fast_policy>>,
            false,
            true,
            false,
            true},
        row{"end_of_page reused",
            [](resource_user use, void* context) {
                pmr_debug::basic_end_of_page_resource<page_again> resource({.quarantine_bytes = std::size_t{16} << 20});
                use(resource, context);
            },
            false,
            true,
            false,
            true},
        row{"end_of_page at once", with_plain<pmr_debug::basic_end_of_page_resource<trap_at_once>>, false, true, true},
        row{"canary/malloc", with_canary<pmr_debug::default_policy>}, row{"canary 16M/malloc", with_long_quarantine},
        row{"canary untraced/malloc", with_canary<canary_only>},
        row{"canary at once/malloc", with_canary<canary_at_once>}, row{"limit/malloc", with_limit},
        row{"failing/malloc", with_failing}, row{"logging/malloc", with_logging}, row{"proxy/malloc", with_proxy<8>},
        row{"proxy untraced/malloc", with_proxy<0>}, row{"forbidden/malloc", with_forbidden<true>},
        row{"forbidden before/malloc", with_forbidden<false>},
#if PMR_DEBUG_BENCH_TRACKING
        row{"tracking counts/malloc", with_tracking<pmr_debug::release_policy>},
        row{"tracking traces/malloc", with_tracking<traces>},
#endif
};

}  // namespace

std::span<const row> rows() noexcept {
    return all_rows;
}

}  // namespace bench
