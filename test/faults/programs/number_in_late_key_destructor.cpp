// A thread uses a resource in a destructor of a pthread key that runs after this library's own. It keeps its number.
// Prints "same" or both numbers.
#include <pmr_debug/pmr_debug.hpp>

#include <pthread.h>

#include <cstdio>
#include <thread>

namespace {

pmr_debug::collecting_handler errors;
pmr_debug::tracking_resource heap({.name = "heap", .handler = &errors});
pthread_key_t key;
int rounds = 0;

void free_twice() {
    void* const p = heap.allocate(8);
    heap.deallocate(p, 8);
    heap.deallocate(p, 8);
}

// Comes again until all other destructors have run.
void at_end(void* value) {
    free_twice();
    if (++rounds < 3) {
        pthread_setspecific(key, value);
    }
}

}  // namespace

int main() {
    heap.deallocate(heap.allocate(8), 8);  // the library's own key comes first
    pthread_key_create(&key, at_end);
    std::thread([] {
        pthread_setspecific(key, &key);
        free_twice();
    }).join();
    std::thread([] { free_twice(); }).join();
    const auto number = [](std::size_t i) { return errors[i].facts.thread; };
    const bool same = number(0) == number(1) && number(1) == number(2) && number(2) == number(3);
    std::printf(same && number(4) == number(0) + 1 ? "same" : "%u %u %u %u, then %u", number(0), number(1), number(2),
                number(3), number(4));
}
