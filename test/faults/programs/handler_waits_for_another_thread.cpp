// A report handler, and an upstream, hand their work to another thread that uses the same resource, and wait for it.
#include "../support/each_resource.hpp"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <thread>
#include <vector>

namespace {

std::pmr::memory_resource* heap = nullptr;
thread_local bool helping = false;

void let_another_use_it() {
    if (heap == nullptr || helping) {
        return;
    }
    std::atomic<bool> done{false};
    std::thread other([&] {
        helping = true;
        std::pmr::vector<int> v(100, heap);
        done = true;
    });
    for (int i = 0; i < 5'000 && !done; ++i) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    if (!done) {
        std::printf("no other thread can use it meanwhile\n");
        std::fflush(stdout);
        std::_Exit(1);
    }
    other.join();
}

struct waiting_handler : pmr_debug::report_handler {
    pmr_debug::action handle(const pmr_debug::report&) noexcept override {
        let_another_use_it();
        return pmr_debug::action::carry_on;
    }
};

struct waiting_upstream : std::pmr::memory_resource {
    pmr_debug::page_resource pages;

    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
        let_another_use_it();
        return pages.allocate(bytes, alignment);
    }
    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
        let_another_use_it();
        pages.deallocate(p, bytes, alignment);
    }
    bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }
};

void* volatile nothing = nullptr;

void work(const faults::subject& s) {
    heap = &s.resource;
    void* const p = heap->allocate(64);
    heap->deallocate(nothing, 64);
    heap->deallocate(p, 64);
    std::vector<void*> many;
    for (int i = 0; i < 40; ++i) {
        many.push_back(heap->allocate(20'000));
    }
    for (auto i = many.rbegin(); i != many.rend(); ++i) {
        heap->deallocate(*i, 20'000);
    }
    heap = nullptr;
}

template <class Resource>
void over_waiting_upstream(pmr_debug::report_handler& handler) {
    waiting_upstream below;
    Resource r(&below, {.name = "heap", .handler = &handler});
    work({r, [&r] { return r.stats(); }});
}

}  // namespace

int main() {
    using namespace pmr_debug;
    waiting_handler handler;
    faults::with_each_resource(&handler, [](const char*, const faults::subject& s) { work(s); });
    over_waiting_upstream<general_purpose_resource>(handler);
    over_waiting_upstream<basic_general_purpose_resource<thorough_policy>>(handler);
    over_waiting_upstream<basic_general_purpose_resource<fast_policy>>(handler);
    over_waiting_upstream<basic_general_purpose_resource<faults::immediate>>(handler);
    over_waiting_upstream<tracking_resource>(handler);
    over_waiting_upstream<canary_resource>(handler);
    over_waiting_upstream<end_of_page_resource>(handler);
    over_waiting_upstream<temp_resource<0, faults::shared_temp>>(handler);
    over_waiting_upstream<limit_resource>(handler);
    over_waiting_upstream<failing_resource>(handler);
}
