// A resource is used when the program, or a thread, comes to its end. The report says whose end it was.
//   order     an object of static storage outlives the resource
//   leak      a resource of static storage has live blocks, while another thread runs
//   detached  a detached thread goes on after the resource was destroyed at the program's exit
//   thread    a thread_local object frees into a resource that its thread has destroyed
//   joined    another thread destroyed the resource
#include <pmr_debug/pmr_debug.hpp>

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <memory_resource>
#include <new>
#include <optional>
#include <string_view>
#include <thread>

namespace {

std::string_view how;
std::atomic<bool> destroyed{false};
std::atomic<bool> used{false};

pmr_debug::text_handler go_on({.abort_on_error = false});

// The pointer is kept from the optimiser, which may know that the object is gone.
void use(std::pmr::memory_resource* r) {
    std::pmr::memory_resource* volatile hidden = r;
    try {
        static_cast<void>(hidden->allocate(8));
    } catch (const std::bad_alloc&) {
    }
}

// Destroyed after the resource, and before the handler: waits until the detached thread has used it.
struct last_one {
    std::pmr::memory_resource* resource = nullptr;
    ~last_one() {
        destroyed = true;
        if (how == "order") {
            use(resource);
        }
        for (int i = 0; how == "detached" && !used && i < 5'000; ++i) {
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
    }
};
last_one last;
pmr_debug::tracking_resource heap({.name = "heap", .handler = &go_on});

struct local {
    std::pmr::memory_resource* resource = nullptr;
    ~local() {
        if (resource != nullptr) {
            use(resource);
        }
    }
};
thread_local local mine;

}  // namespace

int main(int argc, char** argv) {
    how = argc > 1 ? argv[1] : "order";
    pmr_debug::set_default_report_handler(&go_on);
    last.resource = &heap;
    static_cast<void>(heap.allocate(8));
    if (how == "leak") {
        std::atomic<bool> has_used{false};
        static std::atomic<bool>* const told = &has_used;
        std::thread([] {
            static_cast<void>(heap.allocate(8));
            *told = true;
            std::this_thread::sleep_for(std::chrono::seconds(60));
        }).detach();
        while (!has_used) {
            std::this_thread::yield();
        }
    } else if (how == "detached") {
        std::thread([] {
            while (!destroyed) {
                std::this_thread::sleep_for(std::chrono::milliseconds(1));
            }
            use(&heap);
            used = true;
            std::this_thread::sleep_for(std::chrono::seconds(60));
        }).detach();
    } else if (how == "thread") {
        static std::optional<pmr_debug::tracking_resource> scope;
        scope.emplace(pmr_debug::tracking_options{.name = "scope"});
        std::thread([] {
            mine.resource = &*scope;
            scope.reset();
        }).join();
    } else if (how == "joined") {
        static std::optional<pmr_debug::tracking_resource> scope;
        scope.emplace(pmr_debug::tracking_options{.name = "scope"});
        std::thread([] { scope.reset(); }).join();
        use(&*scope);
    }
}
