// First person: dragging looks around, W A S D Q E and the wheel move, a step of a second or less flies to a photo.

class WalkControls {
  constructor(camera, element, changed) {
    this.camera = camera;
    this.element = element;
    this.changed = changed;
    this.enabled = false;
    this.speed = 1; // scene units a second
    this.held = new Set();
    this.flight = null;
    let last = null;
    element.addEventListener("pointerdown", (event) => {
      if (!this.enabled) return;
      last = [event.clientX, event.clientY];
      this.flight = null;
    });
    element.addEventListener("pointermove", (event) => {
      if (!this.enabled || !last || !event.buttons) return;
      this.look(event.clientX - last[0], event.clientY - last[1]);
      last = [event.clientX, event.clientY];
    });
    element.addEventListener("wheel", (event) => {
      if (!this.enabled) return;
      event.preventDefault();
      this.move(0, 0, Math.sign(event.deltaY) * 0.15 * this.speed);
    }, { passive: false });
  }

  look(right, down) {
    const angle = THREE.MathUtils.degToRad(this.camera.fov) / this.element.clientHeight;
    const euler = new THREE.Euler().setFromQuaternion(this.camera.quaternion, "YXZ");
    euler.y += right * angle; // the scene follows the finger
    euler.x = THREE.MathUtils.clamp(euler.x + down * angle, -1.55, 1.55);
    euler.z = 0;
    this.camera.quaternion.setFromEuler(euler);
    this.changed();
  }

  move(right, up, back) {
    this.camera.position.add(new THREE.Vector3(right, up, back).applyQuaternion(this.camera.quaternion));
    this.changed();
  }

  // To a place {position, quaternion, fov}, at once for who asked for little motion.
  fly(place, done) {
    const { position, quaternion, fov } = this.camera;
    const from = { position: position.clone(), quaternion: quaternion.clone(), fov };
    const seconds = matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : 0.7;
    this.flight = { from, to: place, start: performance.now(), seconds, done };
    this.changed();
  }

  // Called before every frame. Returns whether another one is needed.
  advance(elapsed) {
    if (this.flight) {
      const { from, to, start, seconds, done } = this.flight;
      const t = seconds ? Math.min(1, (performance.now() - start) / 1000 / seconds) : 1;
      const eased = t * t * (3 - 2 * t);
      this.camera.position.lerpVectors(from.position, to.position, eased);
      this.camera.quaternion.slerpQuaternions(from.quaternion, to.quaternion, eased);
      this.camera.fov = from.fov + (to.fov - from.fov) * eased;
      this.camera.updateProjectionMatrix();
      if (t < 1) return true;
      this.flight = null;
      if (done) done();
      return false;
    }
    if (!this.enabled || !this.held.size) return false;
    const one = Math.min(elapsed, 0.1) * this.speed;
    const along = (plus, minus) => one * (this.held.has(plus) - this.held.has(minus));
    this.move(along("d", "a"), along("e", "q"), along("s", "w"));
    return true;
  }
}
