// What records cost, and how long a leak report takes.

#include "rows.hpp"

#include <pmr_debug/general_purpose_resource.hpp>
#include <pmr_debug/page_resource.hpp>

#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <vector>

namespace bench {
namespace {

constexpr pmr_debug::policy traces{.guard_bytes = 0, .fill = false};
constexpr pmr_debug::policy deep_traces{.alloc_frames = 32, .free_frames = 8, .guard_bytes = 0, .fill = false};

/// Prints as the default handler does, where nobody reads it, and counts entries.
class counting_handler final : public pmr_debug::report_handler {
public:
    explicit counting_handler(int descriptor) noexcept : text_({.descriptor = descriptor, .abort_on_error = true}) {}
    pmr_debug::action handle(const pmr_debug::report& r) noexcept override {
        entries_ += r.leaks.size();
        return text_.handle(r);
    }
    [[nodiscard]] double entries() const noexcept { return static_cast<double>(entries_); }

private:
    pmr_debug::text_handler text_;
    std::size_t entries_ = 0;
};

/// A descriptor that swallows what is written to it.
class nowhere {
public:
    nowhere() : descriptor_(::open("/dev/null", O_WRONLY | O_CLOEXEC)) {}
    nowhere(const nowhere&) = delete;
    nowhere& operator=(const nowhere&) = delete;
    ~nowhere() { ::close(descriptor_); }
    [[nodiscard]] int descriptor() const noexcept { return descriptor_; }

private:
    int descriptor_;
};

struct leak_report {
    double ms = 0;
    double entries = 0;
};

/// Effects: \p leak allocates \p count blocks and leaves them. Returns: what reporting them took.
template <class Leak>
leak_report report(std::size_t count, Leak leak) {
    const nowhere sink;
    counting_handler handler(sink.descriptor());
    pmr_debug::page_resource pages({.handler = &handler});
    leak_report result;
    {
        pmr_debug::basic_general_purpose_resource<deep_traces> resource(&pages, {.name = "leaky", .handler = &handler});
        std::vector<void*> leaked;
        leaked.reserve(count);
        const auto body = [&] { leak(resource, leaked); };
        nested<20>(body);
        const auto start = std::chrono::steady_clock::now();
        resource.report_leaks();
        result.ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
        result.entries = handler.entries();
        for (void* const p : leaked) {
            resource.deallocate(p, 64, 8);
        }
    }
    return result;
}

/// Two functions that call on into each other: one call path for every number of so many bits.
struct paths {
    std::pmr::memory_resource& resource;
    std::vector<void*>& leaked;

    [[gnu::noinline]] void left(unsigned bits, unsigned path) {
        go_on(bits, path);
        asm volatile("" ::: "memory");
    }
    [[gnu::noinline]] void right(unsigned bits, unsigned path) {
        go_on(bits, path);
        asm volatile("nop" ::: "memory");  // or the linker may find it equal to left()
    }
    [[gnu::always_inline]] void go_on(unsigned bits, unsigned path) {
        if (bits == 0) {
            leaked.push_back(resource.allocate(64, 8));
        } else if ((path & 1) != 0) {
            right(bits - 1, path >> 1);
        } else {
            left(bits - 1, path >> 1);
        }
    }
};

}  // namespace

extras measure_metadata() {
    constexpr std::size_t blocks = 1'000'000;
    pmr_debug::page_resource pages;
    pmr_debug::basic_general_purpose_resource<traces> resource(&pages);
    std::vector<void*> live(blocks);
    const double before = static_cast<double>(resource.stats().overhead_bytes);
    for (void*& p : live) {
        p = resource.allocate(16, 1);
    }
    const double after = static_cast<double>(resource.stats().overhead_bytes);
    for (void* const p : live) {
        resource.deallocate(p, 16, 1);
    }
    return {.metadata_bytes_a_slot = (after - before) / static_cast<double>(blocks)};
}

extras measure_equal_leaks() {
    constexpr std::size_t count = 10'000;
    const leak_report r = report(count, [](std::pmr::memory_resource& resource, std::vector<void*>& leaked) {
        for (std::size_t i = 0; i < count; ++i) {
            leaked.push_back(resource.allocate(64, 8));
        }
    });
    return {.equal_leaks_ms = r.ms, .equal_leaks_entries = r.entries};
}

extras measure_distinct_leaks() {
    constexpr unsigned count = 100'000;
    const leak_report r = report(count, [](std::pmr::memory_resource& resource, std::vector<void*>& leaked) {
        paths p{resource, leaked};
        for (unsigned i = 0; i < count; ++i) {
            p.left(17, i);
        }
    });
    return {.distinct_leaks_ms = r.ms, .distinct_leaks_entries = r.entries};
}

}  // namespace bench
